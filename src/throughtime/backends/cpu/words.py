"""The argument block of a region: sizes, places in the arena, and addresses of a call's tensors.

All but the addresses follows from shapes, so it is worked out once for a shape and kept: a
`Template`. A call adds where its arena lies and writes its tensors' addresses.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.sizes import Rows, Team, padded, time_steps, zeros
from throughtime.compiler.llvm import threads
from throughtime.compiler.llvm.block import COMMON, DIRECTION
from throughtime.compiler.llvm.code import Code
from throughtime.compiler.plan import Plan


KEPT_BYTES: Final = 256 * 1024
"""The largest arena that is kept for the next call of its shape."""

KEPT_CALLS: Final = 2
"""Calls of one shape at once, of several Python threads, whose memory is kept."""


class InArena(int):
    """A place in the arena, counted from its start."""


class InBlock(int):
    """A place in the block itself, counted from its start."""


class Given(str):
    """A word that each call writes: the address of one of its tensors, by name."""


Word = int | InArena | InBlock | Given


@dataclass(frozen=True)
class Shape:
    """What the words of a call follow from.

    Attributes:
        plan: of the cell.
        code: forward or backward.
        rows: of the batch.
        team: who does it.
        D, H, I: directions, units, inputs.
        x, y: bytes from step to step and from row to row.
        packed: whether x holds the rows of all steps one behind the other.
        gates: for each sum, its gate's number in W and in U.
    """

    plan: Plan
    code: Code
    rows: Rows
    team: Team
    D: int
    H: int
    I: int
    x: tuple[int, int]
    y: tuple[int, int]
    packed: bool
    gates: tuple[list[int], list[int]]

    @property
    def H_row(self) -> int:
        """Bytes of a padded row of units."""
        return padded(self.H, self.code.kind.lanes, self.code.kind.bytes)

    @property
    def I_row(self) -> int:
        """Bytes of a padded row of the input."""
        return padded(self.I, self.code.kind.lanes, self.code.kind.bytes)

    @property
    def panel(self) -> int:
        """Unit blocks in a panel of U: so many that its vectors make a tile; all without U."""
        gates = len(self.plan.with_u)
        return max(1, 4 // gates) if gates else max(1, self.H_row // self.code.kind.size)


class Arena:
    """Memory that machine code works in, laid out before it is taken."""

    def __init__(self) -> None:
        self.bytes = 0

    def reserve(self, bytes: int) -> InArena:
        """A place for so many bytes."""
        place = InArena(self.bytes)
        self.bytes += -(-bytes // 64) * 64
        return place

    def reserve_all(self, sizes: Mapping[str, int]) -> dict[str, Word]:
        """A place for each name."""
        return {name: self.reserve(bytes) for name, bytes in sizes.items()}


class _Ready:
    """Memory of one call: the arena, and the words with its addresses in them."""

    def __init__(self, template: Template) -> None:
        self.arena = torch.empty(template.arena_bytes, dtype=torch.uint8)
        self.words = array("q", template.words)
        self.address = self.words.buffer_info()[0]
        for place in template.in_arena:
            self.words[place] += self.arena.data_ptr()
        for place in template.in_block:
            self.words[place] += self.address


class Template:
    """The words of every call of one shape.

    Small memory is used again by the next call of the shape: taking it and writing the words
    anew costs more than a small layer computes.

    Attributes:
        arena_bytes: of the memory that a call takes.
        words: as they are before a call.
        in_arena: places of words that count from the arena's start.
        in_block: places of words that count from the block's start.
    """

    def __init__(self, arena: Arena, common: Mapping[str, Word], lists: int, D: int) -> None:
        self.arena_bytes = arena.bytes
        self._end = len(COMMON) + D * len(DIRECTION)
        self.words = array("q", bytes(8 * (self._end + lists)))
        self.in_arena: list[int] = []
        self.in_block: list[int] = []
        self._given: list[tuple[int, str]] = []
        self._held: list[Any] = []
        self._ready: list[_Ready] = []
        self._counter = 0
        for i, name in enumerate(COMMON):
            self._set(i, common.get(name, 0))

    def _set(self, place: int, word: Word) -> None:
        if isinstance(word, Given):
            self._given.append((place, word))
            return
        self.words[place] = word
        if isinstance(word, InArena):
            self.in_arena.append(place)
        elif isinstance(word, InBlock):
            self.in_block.append(place)

    def set_direction(self, d: int, values: Mapping[str, Word]) -> None:
        """The part of one direction; what is not named is 0."""
        for i, name in enumerate(DIRECTION):
            self._set(len(COMMON) + d * len(DIRECTION) + i, values.get(name, 0))

    def set_common(self, name: str, word: Word) -> None:
        """One word of the common part."""
        self._set(COMMON.index(name), word)

    def set_steps(self, name: str, shape: Shape, strides: tuple[int, int]) -> None:
        """Bytes to each step of a tensor, and from row to row."""
        found = time_steps(shape.rows, strides, shape.packed)
        self._held.append(found)
        self.set_common(f"{name}_steps", found.ctypes.data)
        self.set_common(f"{name}_row", strides[1])

    def set_counter(self) -> None:
        """The barrier's counter, which every call begins at zero."""
        self._counter = self._end
        self.set_common("counter", self.list_of([0]))

    def word(self, name: str) -> int:
        """A word of the common part that is the same for every call."""
        return self.words[COMMON.index(name)]

    def list_of(self, values: Sequence[Word]) -> InBlock:
        """Numbers that a word points to."""
        place = self._end
        self._end += max(1, len(values))
        for i, value in enumerate(values):
            self._set(place + i, value)
        return InBlock(8 * place)

    def run(self, shape: Shape, addresses: Mapping[str, int]) -> None:
        """Call the region with these tensors."""
        try:
            ready = self._ready.pop()
        except IndexError:  # the first call, or others are using what there is
            ready = _Ready(self)
        words, team = ready.words, shape.team
        for place, name in self._given:
            words[place] = addresses[name]
        words[self._counter] = 0
        threads.call(shape.code.region, ready.address, team.threads, team.release_gil)
        if self.arena_bytes <= KEPT_BYTES and len(self._ready) < KEPT_CALLS:
            self._ready.append(ready)


def gate_numbers(plan: Plan, cell: Any) -> tuple[list[int], list[int]]:
    """For each sum, the number of its gate among the rows of W and of U; -1 where it has none."""
    a = {g: i for i, g in enumerate(cell.layout.input_gates)}
    u = {g: i for i, g in enumerate(cell.layout.recurrent_gates)}
    return [a.get(s.a or "", -1) for s in plan.sums], [u.get(s.u or "", -1) for s in plan.sums]


def common_words(shape: Shape, **more: Word) -> dict[str, Word]:
    """The common part of the block."""
    plan, code, rows = shape.plan, shape.code, shape.rows
    runtime = threads.runtime() if shape.team.threads > 1 else None
    tiles, heights, columns = code.tables
    alive, offset, order = rows.addresses
    sums, with_u = len(plan.sums), len(plan.with_u)
    found: dict[str, Word] = {
        "tiles": tiles, "heights": heights, "columns": columns,
        "column_widest": code.column_widest, "D": shape.D, "T": rows.T, "H": shape.H,
        "I": shape.I, "H_row": shape.H_row, "I_row": shape.I_row, "sums": sums,
        "with_a": len(plan.with_a), "first_u": sums - with_u, "with_u": with_u,
        "states": len(plan.state_names), "vectors": len(plan.vectors), "panel": shape.panel,
        "chunks": shape.team.chunks, "rows": alive, "offset": offset, "order": order,
        "zeros": zeros(max(shape.H_row, shape.I_row)),
        "saved_row": len(plan.saved) * shape.H_row, "state_plane": rows.B * shape.H_row,
        "x": Given("x"), "y": Given("y"),
    }  # fmt: skip
    if runtime:
        found |= {
            "thread": runtime.omp_get_thread_num,
            "team": runtime.omp_get_num_threads,
            "yield": runtime.sched_yield,
        }
    return found | more


def direction_words(template: Template, shape: Shape, d: int) -> dict[str, Word]:
    """What forward and backward have in common of one direction."""
    plan = shape.plan
    names = {"W": "weight_ih", "U": "weight_hh", "W_bias": "bias_ih", "U_bias": "bias_hh"}
    states = range(len(plan.state_names))
    return {
        **{word: Given(f"{name} {d}") for word, name in names.items()},
        "reverse": d,
        "y_first": d * shape.H * shape.code.kind.bytes,
        "own": template.list_of([Given(f"{name} {d}") for name in plan.vectors]),
        "gate_a": template.list_of(shape.gates[0]),
        "gate_u": template.list_of(shape.gates[1]),
        "start": template.list_of([Given(f"start{s} {d}") for s in states]),
        "saved": Given(f"saved {d}"),
    }


def shared_lists(template: Template, shape: Shape) -> None:
    """Lists that the common part points to."""
    size = shape.code.kind.size
    template.set_common("flat", template.list_of([v * size for v in range(8)]))
    bounds = shape.rows.bounds(shape.team.chunks)
    template.set_common("bounds", template.list_of(bounds))
    template.set_counter()
    template.set_steps("x", shape, shape.x)
    template.set_steps("y", shape, shape.y)


def call_addresses(call: Call, state: Sequence[Tensor] | None) -> dict[str, int]:
    """Addresses of what a call gives: x, the parameters, where it starts; 0 for what is not."""
    found = {"x": call.x.data_ptr()}
    size = call.x.element_size()
    for d, weights in enumerate(call.weights):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            found[f"{name} {d}"] = 0
        for name, v in weights.items():
            found[f"{name} {d}"] = v.data_ptr()
        for s in range(len(call.cell.state_names)):
            found[f"start{s} {d}"] = 0
    for s, v in enumerate(state or ()):
        for d in range(len(v)):
            found[f"start{s} {d}"] = v.data_ptr() + d * v.stride(0) * size
    return found


def contiguous(call: Call) -> Call:
    """The call with numbers side by side wherever compiled code reads whole lines."""
    x, weights = call.x, call.weights
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    if not all(v.is_contiguous() for w in weights for v in w.values()):
        weights = tuple({n: v.contiguous() for n, v in w.items()} for w in weights)
    if x is call.x and weights is call.weights:
        return call
    return replace(call, x=x, weights=weights)


def start_of(call: Call) -> tuple[Tensor, ...] | None:
    """Where the call starts, whole lines each; None for zeros."""
    if call.state is None and call.initial is None:
        return None
    return tuple(v.contiguous() for v in call.start())
