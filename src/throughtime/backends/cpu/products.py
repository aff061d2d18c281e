"""The products of a call in their order, and packed weights that wait for the next call.

Next to them lies a copy of the weights that they were packed from. At every call the region
compares the weights with that copy, bit by bit, and packs what differs, so it matters to no result
what waits here, nor how weights were changed meanwhile. One parameter's pack is used by one call at
a time; another call that comes meanwhile packs anew.

It pays for few rows, and where weights have left the near caches: packing takes as long as some ten
rows do, and comparing reads where packing writes. A pack dies with its parameter, and is none of a
layer's own: copies and pickles of a layer carry none.

A run is some neighbouring sums of one phase: as many words as `RUN` has names.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.block import Arena, Template
from throughtime.backends.cpu.memory import fresh
from throughtime.backends.cpu.schedule import is_in_place, plan_of
from throughtime.backends.cpu.shape import Key, Shape
from throughtime.compiler.llvm.abi import RUN, WIDEST, WIDEST_ALONE, part_sizes
from throughtime.compiler.plan import Phase


def set_runs(template: Template, words: list[int]) -> None:
    """The runs, of which the last comes after all early ones."""
    template.set_common("runs", template.list_of(words))
    template.set_common("early", len(words) // len(RUN) - 1)


def early_tiles(shape: Shape) -> set[int]:
    """The widths of the tiles that their products need."""
    size = shape.code.kind.size
    runs = (run for phase in shape.plan.early for run in runs_of(shape, phase))
    counts = {count * shape.row(_lines(shape, line)) // size for line, count in runs}
    return {v for count in counts for v in part_sizes(count, WIDEST)}


def runs_of(shape: Shape, phase: Phase) -> list[tuple[int, int]]:
    """A phase's sums as runs: the first one's number, and how many. One matrix has given all, and
    their units lie side by side without a gap."""
    widths, runs = shape.widths, list[tuple[int, int]]()
    for place in phase.places:
        whole = shape.row(widths.sums[place]) == shape.H_row and widths.blocks[place] == 1
        if runs and whole and sum(runs[-1]) == place:
            line, count = runs[-1]
            if widths.matrices[line] == widths.matrices[place]:
                runs[-1] = (line, count + 1)
                continue
        runs.append((place, 1))
    return runs


def packed_backward(shape: Shape) -> int:
    """Bytes of the matrices of all runs, packed for the product with their transpose."""
    return sum(
        _packed_backward(shape, *run) for p in shape.plan.phases for run in runs_of(shape, p)
    )


def _packed_forward(shape: Shape, line: int, count: int) -> int:
    one = shape.row(_lines(shape, line)) * shape.widths.sources[line]
    return count * shape.widths.blocks[line] * one


def _packed_backward(shape: Shape, line: int, count: int) -> int:
    return count * shape.widths.sums[line] * shape.row(shape.widths.sources[line])


def _lines(shape: Shape, line: int) -> int:
    """Of one block of a sum's matrix."""
    return shape.widths.sums[line] // shape.widths.blocks[line]


def runs_forward(shape: Shape) -> list[int]:
    """All runs but those of the fused phase, and what to do before its panels."""
    words: list[int] = []
    packed = 0
    for phase in shape.plan.early:
        for run in runs_of(shape, phase):
            words += _run(shape, phase, run, packed)
            packed += _packed_forward(shape, *run)
    last = shape.plan.fused
    nothing = [0] * len(RUN)
    return words + (_run(shape, last[0], (last[0].places[0], 0), packed) if last else nothing)


def runs_backward(shape: Shape) -> list[int]:
    """The runs from the last phase to the first; the cell's own function before the old output's,
    which is there, if need be without sums."""
    words: list[int] = []
    packed = 0
    for phase in reversed(shape.plan.computed):
        for run in runs_of(shape, phase):
            words += _run(shape, phase, run, packed)
            packed += _packed_backward(shape, *run)
    first = shape.plan.phases[:1]
    there = bool(first) and not first[0].computed
    for number, run in enumerate(runs_of(shape, first[0]) if there else [(0, 0)]):
        cell = 0 if number else shape.code.cell
        matrix = _matrix(shape, run[0]) if there else [0, 0, shape.widths.out, 1]
        words += [*run, packed, cell, 0, int(number == 0), 0, *matrix]
        packed += _packed_backward(shape, *run) if there else 0
    return words


def _run(shape: Shape, phase: Phase, run: tuple[int, int], packed: int) -> list[int]:
    begins, computed = run[0] == phase.places[0], phase.computed
    slot = shape.plan.computed.index(phase) if computed else 0
    function = shape.code.phases[slot] if computed and begins else 0
    return [*run, packed, function, int(computed), int(begins), slot, *_matrix(shape, run[0])]


def _matrix(shape: Shape, line: int) -> list[int]:
    """The matrix of a sum, the lines of it that are the sum's, its columns, and its blocks."""
    widths = shape.widths
    own = _lines(shape, line), widths.sources[line], widths.blocks[line]
    return [widths.matrices[line], *own]


PACKED: Final = ("W_pack", "U_pack", "U_early")
"""What weights are packed to, of one direction."""

MOST_ROWS: Final = 512
"""Rows over all steps up to which packing is more than a hundredth of a call."""

LEAST_NUMBERS: Final = 1 << 20
"""Weights of a direction from which packing takes longer than comparing with what waits.

On a Xeon with 2 MB of second-level cache a layer of 512 units gains 15 % by it at two steps and
nothing at fifty, and one of 128 units loses up to a quarter.
"""

MOST_BYTES: Final = 256 << 20
"""Of all packs that wait, copies of weights included; who finds no room packs at every call."""


@dataclass(frozen=True)
class PackLayout:
    """How packed weights lie in memory.

    Attributes:
        key: what it follows from; equal keys, equal places.
        places: name -> bytes from the start.
        bytes: of them all; a copy of the weights, as long, lies after.
    """

    key: Hashable
    places: Mapping[str, int]
    bytes: int


def layout_of(key: Key, shape: Shape) -> PackLayout:
    """Of the packed weights of all directions, where they are kept from call to call."""
    arena, sizes = Arena(), packed_sizes(shape)
    places = {f"{n} {d}": arena.reserve(sizes[n]) for d in range(shape.D) for n in PACKED}
    cut = shape.panel, shape.widest
    return PackLayout((key.cell, key.masks, key.bytes, key.sizes, cut), places, arena.bytes)


def packed_sizes(shape: Shape) -> dict[str, int]:
    """Bytes of each packed array of one direction."""
    plan, H_row = shape.plan, shape.H_row
    early = sum(_packed_forward(shape, *run) for p in plan.early for run in runs_of(shape, p))
    sizes = len(plan.with_a) * H_row * shape.I, len(plan.last) * H_row * shape.H, early
    return dict(zip(PACKED, sizes, strict=True))


@dataclass(frozen=True)
class _Pack:
    owner: weakref.ref[Tensor]
    key: Hashable
    memory: np.ndarray


_waiting: dict[int, _Pack] = {}  # by the parameter's id


def lies_backward(shape: Shape) -> dict[str, int]:
    """Words: how a backward pass cuts W, and U, where it multiplies by their transposes in place;
    0 where they are packed."""
    plan, widths, team = shape.plan, shape.widths, shape.team
    if plan.computed or not is_in_place(plan, shape.rows.T, shape.rows.B):
        return {"W_lies": 0, "U_lies": 0}
    most = WIDEST_ALONE if shape.rows.B == 1 else WIDEST
    W = _panels(shape, shape.I, most, team.threads) if plan.with_a else 0
    line = plan.phases[0].places[0]
    whole = len(runs_of(shape, plan.phases[0])) == 1 and widths.blocks[line] == 1
    U = _panels(shape, widths.sources[line], shape.widest, team.members) if whole else 0
    return {"W_lies": W, "U_lies": U}


def _panels(shape: Shape, columns: int, most: int, threads: int) -> int:
    """Into how many panels of at most so many vectors columns are cut, the same for each thread. A
    line is no shorter than a panel, so that the last one may end with it; 0: than a vector."""
    lanes = shape.code.kind.lanes
    vectors, most = -(-columns // lanes), min(most, columns // lanes)
    return min(vectors, -(-vectors // (most * threads)) * threads) if most else 0


def lying_panels(shape: Shape, lies: Mapping[str, int]) -> set[int]:
    """The vectors of these panels."""
    plan, lanes = shape.plan, shape.code.kind.lanes
    sources = shape.widths.sources[plan.phases[0].places[0]] if lies["U_lies"] else 0
    cuts = (shape.I, lies["W_lies"]), (sources, lies["U_lies"])
    counts = [(-(-columns // lanes), panels) for columns, panels in cuts if panels]
    return {v for n, panels in counts for v in (n // panels, -(-n // panels))}


def threads_apart(shape: Shape, lies: Mapping[str, int], wants_x: bool, wants_start: bool) -> int:
    """How many threads carry a backward pass of one step without a meeting, each with a part of all
    rows; 1: they meet, since they pack what they multiply by, or share rows."""
    one = shape.D * shape.team.chunks == 1 and not shape.plan.computed
    apart = one and is_in_place(shape.plan, shape.rows.T, shape.rows.B)
    lie = (lies["W_lies"] or not wants_x) and (lies["U_lies"] or not wants_start)
    return shape.team.threads if apart and lie else 1


def owner_of(call: Call, rows: int) -> Tensor | None:
    """The parameter whose pack a call of so many rows over all steps uses; None: it packs alone."""
    weights = call.weights[0].values()
    first = next(iter(weights), None)
    if rows > MOST_ROWS or not isinstance(first, torch.nn.Parameter):
        return None
    if is_in_place(plan_of(call), len(call.x), rows):
        return None
    return first if sum(v.numel() for v in weights) >= LEAST_NUMBERS else None


def has_room(owner: Tensor, layout: PackLayout) -> bool:
    """Whether a pack of this parameter may wait: one does already, or there is room for it."""
    return id(owner) in _waiting or waiting_bytes() + 2 * layout.bytes <= MOST_BYTES


@contextmanager
def packed(owner: Tensor, layout: PackLayout) -> Iterator[dict[str, int]]:
    """The words of one region's packed weights; after it they wait for the next.

    Args:
        owner: the parameter they belong to.
        layout: how they lie.
    """
    old = _waiting.pop(id(owner), None)
    pack = old if old is not None and old.owner() is owner else None
    if pack is None or pack.memory.nbytes < 2 * layout.bytes:
        known = weakref.ref(owner, partial(_forget, id(owner)))
        pack = _Pack(known, None, fresh(2 * layout.bytes))
    trusted, pack = pack.key == layout.key, replace(pack, key=layout.key)
    start = pack.memory.ctypes.data
    yield {name: start + place for name, place in layout.places.items()} | {"trusted": int(trusted)}
    if waiting_bytes() + pack.memory.nbytes <= MOST_BYTES:
        _waiting[id(owner)] = pack


def waiting_bytes() -> int:
    """Of all packs that wait."""
    return sum(pack.memory.nbytes for pack in list(_waiting.values()))


def _forget(place: int, owner: weakref.ref[Tensor]) -> None:
    """The owner is dead; its id may be another's by now."""
    pack = _waiting.get(place)
    if pack is not None and pack.owner is owner:
        _waiting.pop(place, None)
