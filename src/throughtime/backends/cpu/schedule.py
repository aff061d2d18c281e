"""How a call is cut for machine code: threads, steps in a block, whole vectors, widths."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.memory import fresh
from throughtime.cells import Cell
from throughtime.compiler.llvm.abi import MOST_LANES
from throughtime.compiler.llvm.library import team_caller
from throughtime.compiler.passes import NO_MASKS, Masks
from throughtime.compiler.plan import Plan, make_plan
from throughtime.compiler.runtime import machine, threads


@dataclass(frozen=True)
class UnitCounts:
    """How many units the parts of a step have.

    Attributes:
        line: of the longest row.
        states: of each state; the first is the output's.
        units: of each width that the plan names.
        sums: of each sum.
        sources: of what each sum's matrix multiplies, that is its columns; 0 where it has none.
        blocks: of each sum's matrix on its diagonal; then sources are those of one block.
        matrices: for each sum the number of its matrix; the first is weight_hh.
        shapes: lines and columns of each matrix.
    """

    line: int
    states: tuple[int, ...]
    units: tuple[int, ...]
    sums: tuple[int, ...]
    sources: tuple[int, ...]
    blocks: tuple[int, ...]
    matrices: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]

    @cached_property
    def recurrent(self) -> int:
        """Numbers of all matrices that steps multiply by."""
        return sum(w * k for w, k in zip(self.sums, self.sources, strict=True))

    @property
    def out(self) -> int:
        """Of the output."""
        return self.states[0]


@functools.lru_cache(maxsize=256)
def matrix_names(cell: Cell) -> tuple[str, ...]:
    """The names of the matrices that steps multiply by; weight_hh, if need be of no gate, first."""
    return ("weight_hh", *(f"weight_{name}" for name in cell.layout.products))


@functools.lru_cache(maxsize=256)
def widths_for(cell: Cell, H: int, masks: Masks = NO_MASKS) -> UnitCounts:
    """The widths of a cell that has a plan; with masks its sums may come in another order."""
    plan = make_plan(cell, masks)
    states, products = cell.widths(H), cell.layout.products
    units = {w: int(w) if w.isdigit() else cell.width(w, H) for w in plan.widths.names}
    gates = (len(cell.layout.recurrent_gates) * H, states[0])
    shapes = [gates, *(_shape(cell, name, H) for name in products)]
    blocks = [1, *(cell.blocks_of(name) for name in products)]
    matrices = tuple(products.index(s.u) + 1 if s.u in products else 0 for s in plan.sums)
    return UnitCounts(
        max(H, *states, *units.values(), *map(_longest, shapes[1:], blocks[1:])),
        states,
        tuple(units.values()),
        tuple(shapes[m][0] if m else H for m in matrices),
        tuple(shapes[m][1] if s.u else 0 for m, s in zip(matrices, plan.sums, strict=True)),
        tuple(blocks[m] for m in matrices),
        matrices,
        tuple(shapes),
    )


def _shape(cell: Cell, product: str, H: int) -> tuple[int, int]:
    to, source = cell.products[product]
    return cell.width(to, H), cell.width(source, H) // cell.blocks_of(product)


def _longest(shape: tuple[int, int], blocks: int) -> int:
    """Units of a line that takes either side of a product; of blocks that are written one after the
    other, each in whole vectors, so that the last one reaches beyond the last unit."""
    if blocks == 1:
        return max(shape)
    lines, columns = shape[0] // blocks, shape[1]
    return max((blocks - 1) * n + -(-n // MOST_LANES) * MOST_LANES for n in (lines, columns))


FLOPS_PER_US, PACKED_PER_US = 60_000, 10_000
"""Of one core, for the prediction whether threads pay: operations, and bytes of weights packed."""

STEP_FLOPS_PER_US, STEP_BYTES_PER_US = 250_000, 30_000
"""The same of a single step by weights as they lie, of which it reads so many bytes."""

STEP_US = 16
"""Predicted microseconds from which more than one thread is asked for, of such a step.

Its threads meet a few times, and one that waits for the next call slows the other down, where they
share a core.
"""

PARALLEL_US = 200
"""The same of other calls.

A team that is awake starts in three. One that sleeps, as after a pause of the program, may take
hundreds, when the system wakes a thread on the very core that waits for it.
"""

SHARED_BYTES = 64 * 1024
"""Bytes of U from which reading them takes longer than a few meetings of threads."""

CHUNK_ROWS, CHUNK_ROWS_BACK = 3, 2
"""Rows from which a chunk of its own keeps a thread's tiles busy, forward and backward; below,
threads share a chunk. Backward they meet twice as often."""

FAR_BYTES, FAR_ROWS = 1024 * 1024, 16
"""Bytes of U that leave a second-level cache at every step, and the rows that pay for reading all
of it: threads that share a chunk of fewer rows read a part of U each."""

CACHED_BYTES = 384 * 1024
"""What a thread's block of steps may take: about a third of a second-level cache."""


@functools.cache
def target() -> machine.Machine:
    """The machine compiled for, asked once a process; a call was refused where there is none."""
    host = machine.host()
    assert host is not None
    return host


class Team(NamedTuple):
    """How many threads, and how rows are cut among them.

    Attributes:
        threads: asked for.
        chunks: of rows, for each direction.
        members: threads that share a chunk, at most.
        release_gil: whether other Python threads may run meanwhile.
        alone_us: predicted microseconds of one thread.
        is_shared: whether the work is worth as many threads as there are.
    """

    threads: int
    chunks: int
    members: int
    release_gil: bool
    alone_us: float
    is_shared: bool

    @property
    def how(self) -> tuple[int, bool, float, int]:
        """What `threads.caller` takes besides the function."""
        on_team = team_caller(target()) if self.threads > 1 else 0
        return self.threads, self.release_gil, self.alone_us, on_team


class Work(NamedTuple):
    """Of one thread in a pass: microseconds that it is predicted to take, and whether it is one
    step by weights as they lie."""

    us: float
    is_step: bool


def team_for(
    work: Work, directions: int, rows: int, step_bytes: int = -1, chunk_rows: int = CHUNK_ROWS
) -> Team:
    """The team for some work.

    Args:
        work: of one thread.
        directions: carried side by side.
        rows: of the batch.
        step_bytes: of the matrices that are read between two meetings of members; -1: none share a
            chunk. It pays where reading takes longer than meeting.
        chunk_rows: from how many rows on none do, while a second-level cache holds these bytes.
    """
    is_shared = work.us > (STEP_US if work.is_step else PARALLEL_US)
    free = threads.available() if is_shared else 1
    shared = step_bytes >= (0 if work.is_step else SHARED_BYTES)
    least = FAR_ROWS if step_bytes > FAR_BYTES else chunk_rows
    chunks = max(1, min(free // directions, rows // least if shared else rows))
    if shared and work.is_step:  # each reads a part of the weights, for all rows
        chunks = 1
    members = free // (chunks * directions) if shared else 1
    release = threads.worth_releasing(work.us / free)
    return Team(free, chunks, max(1, members), release, work.us, is_shared)


def steps_in_block(T: int, rows: int, bytes: int, least_rows: int) -> int:
    """Steps of a block whose rows take `bytes` each: few enough for caches, enough for tiles; and
    so many that blocks are as even as can be."""
    fit = CACHED_BYTES // max(1, rows * bytes)
    most = max(1, min(T, max(fit, -(-least_rows // max(1, rows)))))
    return -(-T // -(-T // most)) if T else 1


def forward_team(plan: Plan, call: Call, rows: int, in_batch: int) -> Team:
    """The team of a forward pass of so many rows over all steps, so many of them in the batch."""
    step_bytes = len(plan.with_u) * call.hidden_size**2 * call.x.element_size()
    if plan.computed or not plan.fused:  # members of a chunk meet once a step, and no oftener
        step_bytes = -1
    work = predict(plan, call, rows, in_batch)
    return team_for(work, call.directions, in_batch, step_bytes)


def backward_team(plan: Plan, call: Call, rows: int, in_batch: int) -> Team:
    """The team of a backward pass, whose members meet twice in each phase of a step."""
    widths, work = widths_for(call.cell, call.hidden_size), predict(plan, call, rows, in_batch, 2)
    step_bytes = widths.recurrent * call.x.element_size() // (1 + len(plan.computed))
    if any(blocks > 1 for blocks in widths.blocks):  # each is written over the next one's start
        step_bytes = -1
    return team_for(work, call.directions, in_batch, step_bytes, CHUNK_ROWS_BACK)


def predict(plan: Plan, call: Call, rows: int, in_batch: int, passes: int = 1) -> Work:
    """The work of forward products, some for the pointwise part, and the weights that are packed,
    or read, so many times."""
    H, I = call.hidden_size, call.x.shape[-1]
    weights = len(plan.with_a) * H * I + widths_for(call.cell, H).recurrent
    flops, bytes = (2.0 * weights + 100.0 * H) * rows, weights * call.x.element_size()
    is_step = is_in_place(plan, -(-rows // max(1, in_batch)), in_batch)
    if is_step:
        us = flops / STEP_FLOPS_PER_US + passes * bytes / STEP_BYTES_PER_US
    else:
        us = passes * (flops / FLOPS_PER_US + bytes / PACKED_PER_US)
    return Work(us * call.directions, is_step)


MOST_IN_PLACE: Final = 128
"""Rows of a single step up to which weights are sooner multiplied where they lie than packed."""


def is_in_place(plan: Plan, T: int, B: int) -> bool:
    """Whether a call of T steps and B rows multiplies by weights as they lie, unpacked.

    Squares of them are turned in registers, or rows in their place where these are more.
    """
    return T == 1 and B <= MOST_IN_PLACE and bool(plan.fused) and len(plan.phases) == 1


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
    block = fresh(bytes)  # by NumPy: no mode of torch, nor its default device, has a say in it
    block.fill(0)
    return block


def zeros(bytes: int) -> int:
    """The address of at least so many bytes of zeros, which are never written."""
    return _zeros(1 << (bytes - 1).bit_length() if bytes > 4096 else 4096).ctypes.data


def masks_of(call: Call) -> Masks:
    """Which masks a call has; most have none, and ask several times."""
    if call.recurrent_mask is None and call.zoneout is None:
        return NO_MASKS
    return Masks(call.recurrent_mask is not None, call.zoneout is not None)


def plan_of(call: Call) -> Plan:
    """The plan of a call that was not refused."""
    return make_plan(call.cell, masks_of(call), call.hidden_size)
