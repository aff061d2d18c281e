"""Calls of compiled functions on torch's own threads.

One parallel region a call, in the OpenMP runtime that torch runs in: a second pool would fight with
the first for the cores. The runtime is looked up when first needed; nothing is linked to it.

A region ends when the last thread of its team does. Where another program has the core that one of
them would run on, all wait for the system's next tick, milliseconds, so then calls go alone for a
while.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

# The process that imported this. A child by fork has none of the pool's threads, and a region
# there waits for them for ever.
_PROCESS = os.getpid()


@dataclass(frozen=True)
class Runtime:
    """Addresses in torch's OpenMP runtime, and of functions of the C library; 0 for those of Linux
    that are not there.

    GNU's runtime has `GOMP_parallel` as its own entry and LLVM's and Intel's for compatibility:
    `void GOMP_parallel(void (*f)(void *), void *argument, unsigned threads, unsigned flags)`.
    """

    GOMP_parallel: int
    omp_get_thread_num: int
    omp_get_num_threads: int
    omp_in_parallel: int
    sched_yield: int
    usleep: int
    sched_getcpu: int
    sched_getaffinity: int
    sched_setaffinity: int


@functools.cache
def runtime() -> Runtime | None:
    """The runtime that torch's own regions run in; None where torch has none.

    Looked for as the loader does for torch: among what the whole process sees (a runtime that was
    preloaded comes first for torch too), then in what torch's library was linked to.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for name in (None, str(library)):
        try:
            openmp = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return Runtime(**{one: _address(openmp, one) for one in Runtime.__dataclass_fields__})
        except (OSError, AttributeError):  # not loaded; loaded without OpenMP
            continue
    return None


_OF_LINUX: Final = ("sched_getcpu", "sched_getaffinity", "sched_setaffinity")


def _address(library: ctypes.CDLL, name: str) -> int:
    if name in _OF_LINUX and not hasattr(library, name):
        return 0
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def available() -> int:
    """How many threads a call may use now.

    That is `torch.get_num_threads()`, asked at every call, but no more than `usable()`; 1 in a
    process forked from the one that imported this package, where torch has no OpenMP runtime, and
    inside another parallel region.
    """
    openmp = runtime()
    if openmp is None or os.getpid() != _PROCESS or _question(openmp.omp_in_parallel)():
        return 1
    return min(torch.get_num_threads(), usable())


def usable() -> int:
    """How many cores this process may use: those it is bound to, and what its group is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _quota())


@functools.cache
def _quota() -> int:
    """Whole cores that the control groups of this process may use; many where nothing is said.

    Of a core and a half it is one: two threads would be stopped for a quarter of the time.
    """
    cores = float(1 << 16)
    for group in _groups():
        try:
            given, period = (group / "cpu.max").read_text().split()
            cores = min(cores, int(given) / int(period))
        except (OSError, ValueError):  # not said there, or "max"
            continue
    return max(1, int(cores))


def _groups() -> list[Path]:
    """Folders of this process's control group and of those around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    path, top = Path("/sys/fs/cgroup", own.lstrip("/")), Path("/sys/fs/cgroup")
    return [path, *(p for p in path.parents if p.is_relative_to(top))]


def worth_releasing(predicted_us: float) -> bool:
    """Whether a call predicted to take so many microseconds should let other Python threads run.

    Giving the lock up is cheap; getting it back takes as long as who has it then likes to keep it.
    """
    return predicted_us > 50


def _prototype(release_gil: bool) -> Callable[..., Callable[..., Callable[..., None]]]:
    return ctypes.CFUNCTYPE if release_gil else ctypes.PYFUNCTYPE


def caller(
    function: int, threads: int, release_gil: bool, alone_us: float
) -> Callable[[int], None]:
    """Runs `void function(void *argument)` once on every thread of a team, and waits for all.

    What is given is called with the argument's address, for calls that do the same work. It goes
    alone while teams are kept waiting.

    Args:
        function: the function's address. The team may be smaller than asked for: it asks the
            runtime how many there are, and which one it is.
        threads: 1 runs on the calling thread, without the runtime; at most `available()`.
        release_gil: lets other Python threads run meanwhile; see `worth_releasing`.
        alone_us: microseconds that one thread is predicted to take.
    """
    if threads == 1:
        return alone(function, release_gil)
    return Shared(function, threads, release_gil, alone_us)


class Shared:
    """Calls of a function on all threads of a team, or alone while others have the cores.

    How long it takes alone is predicted at first. A team that takes longer makes the next call go
    alone, since the prediction may be wrong; then it is known from the fastest such call. And it is
    at most as many times the time of the fastest team as that has threads.

    Args:
        function, threads, release_gil, alone_us: as `caller` takes them.
    """

    def __init__(self, function: int, threads: int, release_gil: bool, alone_us: float) -> None:
        self._function, self._threads = function, threads
        self._team, self._alone = _team(release_gil), alone(function, release_gil)
        self._best, self._best_alone, self._predicted = _EVER, _EVER, alone_us / 1e6
        self._asks = False

    def __call__(self, argument: int) -> None:
        begun = _now()
        if self._asks or _gain.is_lost(begun):
            self._alone(argument)
            took = _now() - begun
            self._best_alone, self._asks = min(self._best_alone, took), False
            _gain.pay(took)
            return
        self._team(self._function, argument, self._threads, 0)
        ended = _now()
        took, known = ended - begun, self._best_alone != _EVER
        by_one = self._best_alone if known else self._predicted
        self._best = min(self._best, took)
        if known or took <= by_one:
            _gain.add(min(by_one, self._threads * self._best) - took, ended)
        else:
            self._asks = True


class Gain:
    """What teams have gained over the calling thread alone, and the pause when that is lost.

    Gain is kept up to a bound, so that some calls that were kept waiting do no harm, and many do.
    A pause ends when the calls that went alone have taken its time together: a program that calls
    now and then would otherwise try a team each time. One losing call is enough for the next pause,
    which is twice as long until teams have gained again what they may lose at first.
    """

    def __init__(self) -> None:
        self._kept, self._pause = KEPT[0], PAUSES[0]
        self._left, self._until = 0.0, 0.0

    def is_lost(self, now: float) -> bool:
        """Whether a call goes alone now."""
        return self._left > 0 and now < self._until

    def pay(self, seconds: float) -> None:
        """A call went alone and took so long."""
        self._left -= seconds

    def add(self, seconds: float, now: float) -> None:
        """A team's call has gained so much, or lost it."""
        self._kept = min(KEPT[1], self._kept + seconds)
        if self._kept >= KEPT[0]:
            self._pause = PAUSES[0]
        elif self._kept < 0:
            self._left = max(self._pause, 10 * -seconds)
            self._until = now + LONGEST * self._left
            self._kept, self._pause = 0.0, min(PAUSES[1], 2 * self._pause)


KEPT: Final = 0.01, 0.05
"""Seconds of gain that are there at first, and at most: a call that waits loses a tick or two of
the system's, four milliseconds each, and one such call among ten is better than ten alone."""

PAUSES: Final = 0.02, 1.0
"""Seconds of calls that go alone, at first and at most."""

LONGEST: Final = 10
"""Times its seconds that a pause lasts on the clock at most."""

_EVER: Final = float("inf")
_now = time.perf_counter
_gain = Gain()  # of the process: whoever has the cores has them for all layers


@functools.cache
def alone(function: int, release_gil: bool) -> Callable[[int], None]:
    """The function on the calling thread, to be called with its argument's address."""
    return _prototype(release_gil)(None, ctypes.c_void_p)(function)


@functools.cache
def _team(release_gil: bool) -> Callable[[int, int, int, int], None]:
    openmp = runtime()
    assert openmp is not None, "available() gives one thread where there is no runtime"
    pointers, numbers = [ctypes.c_void_p] * 2, [ctypes.c_uint] * 2
    return _prototype(release_gil)(None, *pointers, *numbers)(openmp.GOMP_parallel)


@functools.cache
def _question(omp_in_parallel: int) -> Callable[[], int]:
    return ctypes.PYFUNCTYPE(ctypes.c_int)(omp_in_parallel)
