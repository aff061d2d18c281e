"""The argument block of a region, from a call: sizes, addresses of tensors, places in the arena."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.sizes import Arena, Rows, Team, padded, steps, zeros
from throughtime.compiler.llvm import threads
from throughtime.compiler.llvm.block import COMMON, DIRECTION
from throughtime.compiler.llvm.code import NO_LIMIT, Code
from throughtime.compiler.plan import Plan


@dataclass(frozen=True)
class Job:
    """A call with everything that forward and backward share.

    Attributes:
        call: what to carry, its tensors with numbers side by side.
        plan: of its cell.
        code: forward or backward.
        rows: of its batch.
        team: who does it.
    """

    call: Call
    plan: Plan
    code: Code
    rows: Rows
    team: Team

    @property
    def H(self) -> int:
        """Units."""
        return self.call.hidden_size

    @property
    def I(self) -> int:
        """Width of the input."""
        return self.call.x.shape[-1]

    @property
    def H_row(self) -> int:
        """Bytes of a padded row of units."""
        return padded(self.H, self.code.kind.lanes, self.code.kind.bytes)

    @property
    def I_row(self) -> int:
        """Bytes of a padded row of the input."""
        return padded(self.I, self.code.kind.lanes, self.code.kind.bytes)

    @property
    def saved_row(self) -> int:
        """Bytes of what is saved of a row."""
        return len(self.plan.saved) * self.H_row

    @property
    def panel(self) -> int:
        """Unit blocks in a panel of U: so many that its vectors make a tile; all without U."""
        gates = len(self.plan.with_u)
        return max(1, 4 // gates) if gates else max(1, self.H_row // self.code.kind.size)


def flops_of(plan: Plan, call: Call, rows: int) -> float:
    """Of the forward products, and some for the pointwise part."""
    H, I = call.hidden_size, call.x.shape[-1]
    products = 2.0 * H * (len(plan.with_a) * I + len(plan.with_u) * H)
    return (products + 100.0 * H) * rows * call.directions


def gate_numbers(plan: Plan, cell: Any) -> tuple[list[int], list[int]]:
    """For each sum, the number of its gate among the rows of W and of U; -1 where it has none."""
    a = {g: i for i, g in enumerate(cell.layout.input_gates)}
    u = {g: i for i, g in enumerate(cell.layout.recurrent_gates)}
    return [a.get(s.a or "", -1) for s in plan.sums], [u.get(s.u or "", -1) for s in plan.sums]


def time_steps(v: Tensor, rows: Rows, packed: bool) -> tuple[Any, int, int]:
    """Bytes to each step of a tensor (array, address), and from row to row."""
    size = v.element_size()
    if packed:
        found = rows.offset * (v.stride(0) * size)
        return found, found.ctypes.data, v.stride(0) * size
    return *steps(rows.T, v.stride(0) * size), v.stride(1) * size


def common_words(job: Job, **more: int) -> dict[str, int]:
    """The common part of the block."""
    plan, code, call = job.plan, job.code, job.call
    runtime = threads.runtime() if job.team.threads > 1 else None
    tiles, heights, columns = code.tables
    alive, offset, order = job.rows.addresses
    sums, with_a, with_u = len(plan.sums), len(plan.with_a), len(plan.with_u)
    return dict(
        zip(
            COMMON,
            [0] * len(COMMON),
            strict=True,
        ),
        thread=runtime.omp_get_thread_num if runtime else 0,
        team=runtime.omp_get_num_threads if runtime else 0,
        **{"yield": runtime.sched_yield if runtime else 0},
        tiles=tiles, heights=heights, columns=columns, column_widest=code.column_widest,
        D=call.directions, T=job.rows.T, H=job.H, I=job.I, H_row=job.H_row, I_row=job.I_row,
        sums=sums, with_a=with_a, first_u=sums - with_u, with_u=with_u,
        states=len(plan.state_names), vectors=len(plan.vectors), panel=job.panel,
        chunks=job.team.chunks, rows=alive, offset=offset, order=order,
        zeros=zeros(max(job.H_row, job.I_row)), saved_row=job.saved_row,
        state_plane=job.rows.B * job.H_row, **more,
    )  # fmt: skip


class Block:
    """The words of a region in memory, with the lists that they point to."""

    def __init__(self, common: Mapping[str, int], directions: int, lists: int) -> None:
        self._lists_at = len(COMMON) + directions * len(DIRECTION)
        self.words = array("q", bytes(8 * (self._lists_at + lists)))
        self.address = self.words.buffer_info()[0]
        self.words[: len(COMMON)] = array("q", [common[name] for name in COMMON])

    def set_direction(self, d: int, values: Mapping[str, int]) -> None:
        """The part of one direction; what is not named is 0."""
        place = len(COMMON) + d * len(DIRECTION)
        words = array("q", [values.get(name, 0) for name in DIRECTION])
        self.words[place : place + len(DIRECTION)] = words

    def set_common(self, name: str, value: int) -> None:
        """One word of the common part."""
        self.words[COMMON.index(name)] = value

    def list_of(self, values: Sequence[int]) -> int:
        """Numbers that a word points to: their address."""
        place = self._lists_at
        self._lists_at += len(values)
        assert self._lists_at <= len(self.words)
        self.words[place : self._lists_at] = array("q", values)
        return self.address + 8 * place

    def place_of(self, name: str) -> int:
        """The address of a word of the common part."""
        return self.address + 8 * COMMON.index(name)


def panel_places(job: Job) -> list[int]:
    """Bytes from the start of a panel's sums to where each of its vectors begins."""
    gates, first = len(job.plan.with_u), len(job.plan.sums) - len(job.plan.with_u)
    size = job.code.kind.size
    return [
        (first + g) * job.H_row + block * size
        for block in range(job.panel if gates else 0)
        for g in range(gates)
    ]


def addresses(values: Sequence[Tensor | None]) -> list[int]:
    """Where tensors lie; 0 for none."""
    return [0 if v is None else v.data_ptr() for v in values]


def contiguous(call: Call) -> Call:
    """The call with numbers side by side wherever compiled code reads whole lines."""
    from dataclasses import replace

    def whole(v: Tensor) -> Tensor:
        return v if v.is_contiguous() else v.contiguous()

    x = call.x if call.x.stride(-1) == 1 or call.x.shape[-1] < 2 else call.x.contiguous()
    return replace(
        call,
        x=x,
        weights=tuple({n: whole(v) for n, v in w.items()} for w in call.weights),
        state=tuple(whole(v) for v in call.start()) if call.state or call.initial else None,
    )
