"""Calls of compiled functions on torch's own threads.

One parallel region a call, in the OpenMP runtime that torch runs in: a second pool would fight with
the first for the cores. The runtime is looked up when first needed; nothing is linked to it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

# The process that imported this. A child by fork has none of the pool's threads, and a region
# there waits for them for ever.
_PROCESS = os.getpid()


@dataclass(frozen=True)
class Runtime:
    """Addresses in torch's OpenMP runtime, and of the C library's `sched_yield` and `usleep`.

    GNU's runtime has `GOMP_parallel` as its own entry and LLVM's and Intel's for compatibility:
    `void GOMP_parallel(void (*f)(void *), void *argument, unsigned threads, unsigned flags)`.
    """

    GOMP_parallel: int
    omp_get_thread_num: int
    omp_get_num_threads: int
    omp_in_parallel: int
    sched_yield: int
    usleep: int


@functools.cache
def runtime() -> Runtime | None:
    """The runtime that torch's own regions run in; None where torch has none.

    Looked for as the loader does for torch: among what the whole process sees (a runtime that was
    preloaded comes first for torch too), then in what torch's library was linked to.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for name in (None, str(library)):
        try:
            found = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return Runtime(**{one: _address(found, one) for one in Runtime.__dataclass_fields__})
        except (OSError, AttributeError):  # not loaded; loaded without OpenMP
            continue
    return None


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def available() -> int:
    """How many threads a call may use now.

    That is `torch.get_num_threads()`, asked at every call; 1 in a process forked from the one that
    imported this package, where torch has no OpenMP runtime, and inside another parallel region.
    """
    found = runtime()
    if found is None or os.getpid() != _PROCESS or _question(found.omp_in_parallel)():
        return 1
    return torch.get_num_threads()


def call(function: int, argument: int, threads: int, release_gil: bool) -> None:
    """Runs `void function(void *argument)` once on every thread of a team, and waits for all.

    Args:
        function: the function's address. The team may be smaller than asked for: it asks the
            runtime how many there are, and which one it is.
        argument: the address it is given.
        threads: 1 runs on the calling thread, without the runtime; at most `available()`.
        release_gil: lets other Python threads run meanwhile; see `worth_releasing`.
    """
    if threads == 1:
        alone(function, release_gil)(argument)
    else:
        _team(release_gil)(function, argument, threads, 0)


def worth_releasing(predicted_us: float) -> bool:
    """Whether a call predicted to take so many microseconds should let other Python threads run.

    Giving the lock up is cheap; getting it back takes as long as who has it then likes to keep it.
    """
    return predicted_us > 50


def _prototype(release_gil: bool) -> Callable[..., Callable[..., Callable[..., None]]]:
    return ctypes.CFUNCTYPE if release_gil else ctypes.PYFUNCTYPE


def caller(function: int, threads: int, release_gil: bool) -> Callable[[int], None]:
    """`call` of this function by so many threads, to be called with its argument's address."""
    if threads == 1:
        return alone(function, release_gil)
    team = _team(release_gil)

    def share(argument: int) -> None:
        team(function, argument, threads, 0)

    return share


@functools.cache
def alone(function: int, release_gil: bool) -> Callable[[int], None]:
    """The function on the calling thread, to be called with its argument's address."""
    return _prototype(release_gil)(None, ctypes.c_void_p)(function)


@functools.cache
def _team(release_gil: bool) -> Callable[[int, int, int, int], None]:
    found = runtime()
    assert found is not None, "available() gives one thread where there is no runtime"
    pointers, numbers = [ctypes.c_void_p] * 2, [ctypes.c_uint] * 2
    return _prototype(release_gil)(None, *pointers, *numbers)(found.GOMP_parallel)


@functools.cache
def _question(omp_in_parallel: int) -> Callable[[], int]:
    return ctypes.PYFUNCTYPE(ctypes.c_int)(omp_in_parallel)
