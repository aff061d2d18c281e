"""How a call is cut for machine code: threads, steps in a block, whole vectors."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.memory import fresh
from throughtime.backends.cpu.widths import widths_for
from throughtime.compiler.llvm import machine, threads
from throughtime.compiler.plan import Plan

FLOPS_PER_US = 60_000
"""Of one core, for the prediction whether threads pay."""

PARALLEL_US = 200
"""Predicted microseconds from which more than one thread is asked for.

A team that is awake starts in three. One that sleeps, as after a pause of the program, may take
hundreds, when the system wakes a thread on the very core that waits for it.
"""

SHARED_BYTES = 64 * 1024
"""Bytes of U from which reading them takes longer than several meetings of threads."""

CHUNK_ROWS = 5
"""Rows from which a chunk of its own keeps a thread's tiles busy; below, threads share a chunk."""

CACHED_BYTES = 384 * 1024
"""What a thread's block of steps may take: about a third of a second-level cache."""


@functools.cache
def target() -> machine.Machine:
    """The machine compiled for, asked once a process; a call was refused where there is none."""
    found = machine.host()
    assert found is not None
    return found


class Team(NamedTuple):
    """How many threads, and how rows are cut among them.

    Attributes:
        threads: asked for.
        chunks: of rows, for each direction.
        members: threads that share a chunk, at most.
        release_gil: whether other Python threads may run meanwhile.
    """

    threads: int
    chunks: int
    members: int
    release_gil: bool


def team_for(flops: float, directions: int, rows: int, step_bytes: int = -1) -> Team:
    """The team for so much work.

    Args:
        flops: of the whole call.
        directions: carried side by side.
        rows: of the batch.
        step_bytes: of the matrices that one step reads, where members may share a chunk, else
            negative; sharing costs one meeting a step, and pays where reading takes longer.
    """
    free = threads.available() if flops > PARALLEL_US * FLOPS_PER_US else 1
    shared = step_bytes >= SHARED_BYTES
    chunks = max(1, min(free // directions, rows // CHUNK_ROWS if shared else rows))
    members = free // (chunks * directions) if shared else 1
    release = threads.worth_releasing(flops / FLOPS_PER_US / free)
    return Team(free, chunks, max(1, members), release)


def steps_in_block(T: int, rows: int, bytes: int, least_rows: int) -> int:
    """Steps of a block whose rows take `bytes` each: few enough for caches, enough for tiles; and
    so many that blocks are as even as can be."""
    fit = CACHED_BYTES // max(1, rows * bytes)
    most = max(1, min(T, max(fit, -(-least_rows // max(1, rows)))))
    return -(-T // -(-T // most)) if T else 1


def flops_of(plan: Plan, call: Call, rows: int) -> float:
    """Of the forward products, and some for the pointwise part."""
    H, I = call.hidden_size, call.x.shape[-1]
    products = 2.0 * (len(plan.with_a) * H * I + widths_for(call.cell, H).recurrent)
    return (products + 100.0 * H) * rows * call.directions


def strides_of(v: Tensor, packed: bool) -> tuple[int, int]:
    """Bytes of a tensor from step to step, 0 where it is packed, and from row to row."""
    size = v.element_size()
    if packed:
        return 0, v.stride(0) * size
    return v.stride(0) * size, v.stride(1) * size


def part_address(v: Tensor | None, d: int) -> int:
    """Where one direction's part of a tensor (D, ...) begins; 0 for what is not."""
    if v is None:
        return 0
    return v.data_ptr() + d * v.stride(0) * v.element_size() if d else v.data_ptr()


def whole_vectors(count: int, lanes: int) -> int:
    """So many numbers, and as many more as fill the last vector."""
    return -(-count // lanes) * lanes


@functools.cache  # a power of two each, so there are few
def _zeros(bytes: int) -> np.ndarray:
    found = fresh(bytes)  # by NumPy: no mode of torch, nor its default device, has a say in it
    found.fill(0)
    return found


def zeros(bytes: int) -> int:
    """The address of at least so many bytes of zeros, which nobody writes."""
    return _zeros(1 << (bytes - 1).bit_length() if bytes > 4096 else 4096).ctypes.data
