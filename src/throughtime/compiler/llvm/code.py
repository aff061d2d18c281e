"""Machine code that is ready to be called: the loops, the tiles and a cell's own functions."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from throughtime.compiler.llvm import build, machine, tile
from throughtime.compiler.llvm.emit import Kind
from throughtime.compiler.llvm.jit import load
from throughtime.compiler.llvm.machine import Machine
from throughtime.compiler.llvm.products import PLACES
from throughtime.compiler.plan import Plan

NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Code:
    """One direction of computing, forward or backward, of one cell.

    Attributes:
        kind: the numbers it computes with.
        region: address of what every thread of a team runs.
        cell: address of the cell's own function.
        tables: addresses that the loops look up: tiles, heights of tiles, column tiles.
        column_widest: vectors of the widest column tile.
    """

    kind: Kind
    region: int
    cell: int
    tables: tuple[int, int, int]
    column_widest: int


def forward_code(plan: Plan, bytes: int, target: Machine) -> Code:
    """The forward pass of a cell, in numbers of so many bytes."""
    return _code(plan.key, plan, bytes, target, False)


def backward_code(plan: Plan, bytes: int, target: Machine) -> Code:
    """The backward pass."""
    return _code(plan.key, plan, bytes, target, True)


_READY: dict[tuple[str, int, Machine, bool], Code] = {}


def _code(key: str, plan: Plan, bytes: int, target: Machine, back: bool) -> Code:
    found = _READY.get((key, bytes, target, back))
    if found is None:
        found = _READY[key, bytes, target, back] = _made(key, plan, bytes, target, back)
    return found


def _made(key: str, plan: Plan, bytes: int, target: Machine, back: bool) -> Code:
    kind = Kind(bytes, target.lanes(8 * bytes))
    name = "backward" if back else "forward"
    module = build.backward_module if back else build.forward_module
    own = _loaded(f"{name} {key}", kind, target, lambda: module(kind, plan))
    loops = _loaded(f"loops {name}", kind, target, lambda: build.loops_module(kind, target, back))
    return Code(
        kind,
        loops.address(name),
        own.address(f"cell_{name}"),
        _tables(kind, target, back),
        tile.column_widest(target.registers),
    )


def _loaded(name: str, kind: Kind, target: Machine, module: Callable[[], Any]) -> Any:
    return load(f"{name} {kind}", lambda: machine.text(module(), target), target)


@functools.cache
def _tables(kind: Kind, target: Machine, back: bool) -> tuple[int, int, int]:
    """Addresses of the tables of tiles, of their heights, and of column tiles."""
    registers = target.registers
    tiles = _loaded("tiles", kind, target, lambda: build.tiles_module(kind, registers))
    heights = [NO_LIMIT, *(tile.most_rows(registers, v) for v in range(1, tile.WIDEST + 1))]
    table = array("q", [0] * (PLACES * (tile.WIDEST + 1)))
    for v, height in enumerate(heights[1:], 1):
        for r in range(1, height + 1):
            table[v * PLACES + r] = tiles.address(f"tile_{v}_{r}")
    columns = array("q", [0] * len(table))
    if back:
        object = _loaded("columns", kind, target, lambda: build.columns_module(kind, registers))
        for v in range(1, tile.column_widest(registers) + 1):
            for r in tile.COLUMN_ROWS:
                columns[v * PLACES + r] = object.address(f"column_{v}_{r}")
    found = table, array("q", heights), columns
    _KEPT.append(found)
    return tuple(v.buffer_info()[0] for v in found)  # type: ignore[return-value]


_KEPT: list[Any] = []
"""Tables whose addresses compiled code holds."""
