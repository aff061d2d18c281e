"""What the machine can do: multiply-adds on registers, and reading from each level of memory.

The kernels are compiled in the run itself, vectors as wide as the machine's, and run on as many
threads as torch takes (ctypes lets go of the interpreter's lock).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from benchmarks.speed.caches import cache_bytes
from benchmarks.speed.peak_kernels import ACCUMULATORS, LANES, LOADS, compiled

SECONDS = 0.02  # of one run: the start of threads then is less than a hundredth of it


class FmaKernel:
    """Multiply-adds whose operands never leave the registers, on `threads` threads at once."""

    def __init__(self, threads: int) -> None:
        self._call = compiled("multiply_adds", ctypes.c_int64, ctypes.c_void_p)
        self._pool = ThreadPoolExecutor(threads)
        self._sinks = [np.zeros(64, np.float32) for _ in range(threads)]
        self._turns = 1000
        self.run()
        while seconds(self.run) < SECONDS:
            self._turns *= 2

    @property
    def flops(self) -> float:
        """The arithmetic of one run, over all threads."""
        return 2.0 * LANES * ACCUMULATORS * self._turns * len(self._sinks)

    def run(self) -> None:
        """One run; returns when the last thread is done."""
        jobs = [self._pool.submit(self._call, self._turns, s.ctypes.data) for s in self._sinks]
        for job in jobs:
            job.result()


class ReadKernel:
    """Reads a buffer over and over, one of its own on each of `threads` threads."""

    def __init__(self, threads: int, buffer: int) -> None:
        self._call = compiled("reads", ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        self._pool = ThreadPoolExecutor(threads)
        block = 4 * LANES * LOADS
        self._blocks = max(1, buffer // block)
        self._data = [aligned(self._blocks * block) for _ in range(threads)]
        self._turns = 1
        self.run()
        while seconds(self.run) < SECONDS:
            self._turns *= 2

    @property
    def bytes(self) -> float:
        """What one run reads, over all threads."""
        return 4.0 * LANES * LOADS * self._blocks * self._turns * len(self._data)

    def run(self) -> None:
        """One run; returns when the last thread is done."""
        arguments = [(self._turns, self._blocks, d.ctypes.data) for d in self._data]
        jobs = [self._pool.submit(self._call, *a) for a in arguments]
        for job in jobs:
            job.result()


def aligned(size: int) -> Any:
    """Zeros that start at a cache line and are really there (bytes of nothing share one page)."""
    raw = np.ones(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    raw[:] = 0
    return raw[start : start + size]


def seconds(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call, on the wall's clock unless another is named."""
    begun = clock()
    run()
    return clock() - begun


def measure_machine(threads: int, repeats: int = 9) -> dict[str, Any]:
    """The peak of one core and of all, and the bandwidths of L2, L3 and memory, in units of 1e9.

    "of_a_core" is per second of processor time, which other programs cannot take away.

    A level is read through a buffer of half its size for each thread (L3: half of it in all;
    memory: four times L3 in all).
    """
    found: dict[str, Any] = {"lanes": LANES, "threads": threads}
    sizes = cache_bytes()
    buffers = {"L2": sizes["L2"] // 2, "L3": sizes["L3"] // 2, "memory": 4 * sizes["L3"]}
    for name, count in {"one": 1, "all": threads}.items():
        fma = FmaKernel(count)
        times = [seconds(fma.run) for _ in range(repeats)]
        own = [seconds(fma.run, time.process_time) for _ in range(repeats)]
        found[f"gflops_{name}"] = fma.flops / median(times) / 1e9
        found[f"gflops_{name}_best"] = fma.flops / min(times) / 1e9
        found[f"gflops_{name}_of_a_core"] = fma.flops / median(own) / 1e9
        for level, size in buffers.items():
            reader = ReadKernel(count, size if level == "L2" else size // count)
            rate = reader.bytes / median(seconds(reader.run) for _ in range(repeats)) / 1e9
            found[f"read_gbytes_s_{level}_{name}"] = rate
    return found
