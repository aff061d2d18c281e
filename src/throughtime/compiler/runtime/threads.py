"""Calls of compiled functions on torch's own threads.

One parallel region a call, in the OpenMP runtime that torch runs in: a second pool would fight with
the first for the cores. The runtime is looked up when first needed; nothing is linked to it.
Machine code calls the team, or the calling thread alone while teams are kept waiting
(llvm/loops/team.py).
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from array import array
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
    omp_get_max_threads: int
    omp_in_parallel: int
    getpid: int
    clock_gettime: int
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


def caller(
    function: int, threads: int, release_gil: bool, alone_us: float, on_team: int = 0
) -> Caller:
    """Runs `void function(void *argument)` once on every thread of a team, and waits for all.

    What is given is called with the argument's address, for calls that do the same work. It goes
    alone while teams are kept waiting.

    Args:
        function: the function's address. The team may be smaller than asked for: it asks the
            runtime how many there are, and which one it is.
        threads: 1 runs on the calling thread, without the runtime; at most `available()`.
        release_gil: lets other Python threads run meanwhile; see `worth_releasing`.
        alone_us: microseconds that one thread is predicted to take.
        on_team: address of the machine code that calls a team (llvm/loops/team.py).
    """
    if threads == 1:
        return alone(function, release_gil)
    return Shared(function, threads, release_gil, alone_us, on_team)


class Shared:
    """Calls of a function on all threads of a team, or alone while others have the cores.

    Attributes:
        on_team: address of the machine code that decides it.
        call: address of what that knows of these calls (CALL).

    Args:
        function, threads, release_gil, alone_us, on_team: as `caller` takes them.
    """

    def __init__(
        self, function: int, threads: int, release_gil: bool, alone_us: float, on_team: int
    ) -> None:
        openmp = runtime()
        assert openmp is not None, "available() gives one thread where there is no runtime"
        words = {name: getattr(openmp, name) for name in Runtime.__dataclass_fields__}
        words |= {"function": function, "threads": threads, "alone": int(1000 * alone_us)}
        words |= {"best": EVER, "best_alone": EVER, "asks": 0, "process": _PROCESS}
        words |= {"clock": time.CLOCK_MONOTONIC, "gain": _gain.buffer_info()[0]}
        self._words = array("q", [words[name] for name in CALL])
        self.on_team, self.call = on_team, self._words.buffer_info()[0]
        self._run = _prototype(release_gil)(None, *[ctypes.c_void_p] * 2)(on_team)

    def __call__(self, argument: int) -> None:
        self._run(self.call, argument)


Caller = Callable[[int], None]
"""Calls a function with the address of its argument."""

EVER: Final = 1 << 62
"""Nanoseconds of what has not been seen yet."""

CALL: Final = (
    "function", "threads", "alone", "best", "best_alone", "asks", "process", "clock", "gain",
    "GOMP_parallel", "omp_in_parallel", "omp_get_max_threads", "getpid", "clock_gettime",
)  # fmt: skip
"""What is known of calls that do the same work: the function and the threads asked for; nanoseconds
that one thread is predicted to take, and of the fastest team and the fastest call alone; whether
the next call goes alone, to see; the process; the number of the clock; where GAIN lies; functions.
"""

GAIN: Final = {"kept": 10_000_000, "pause": 20_000_000, "left": 0, "until": 0}
"""What teams have gained, and the pause when that is lost, in nanoseconds, as they begin.

A call that waits loses a tick or two of the system's, four milliseconds each, and one such call
among ten is better than ten alone.
"""

_gain = array("q", GAIN.values())  # of the process: whoever has the cores has them for all layers


def _prototype(release_gil: bool) -> Callable[..., Callable[..., Callable[..., None]]]:
    return ctypes.CFUNCTYPE if release_gil else ctypes.PYFUNCTYPE


@functools.cache
def alone(function: int, release_gil: bool) -> Caller:
    """The function on the calling thread, to be called with its argument's address."""
    return _prototype(release_gil)(None, ctypes.c_void_p)(function)


@functools.cache
def _question(omp_in_parallel: int) -> Callable[[], int]:
    return ctypes.PYFUNCTYPE(ctypes.c_int)(omp_in_parallel)
