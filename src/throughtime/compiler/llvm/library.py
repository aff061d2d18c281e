"""Machine code that is ready to be called: the loops, the tiles and a cell's own functions.

What writes code is imported only when the cache has none.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from throughtime.compiler.llvm.abi import (
    COLUMN_ROWS,
    PLACES,
    WIDEST,
    WIDEST_ALONE,
    Kind,
    column_widest,
    line_rows,
    most_rows,
)
from throughtime.compiler.plan import Plan
from throughtime.compiler.runtime import machine
from throughtime.compiler.runtime.jit import Loaded, load
from throughtime.compiler.runtime.machine import Machine

NO_LIMIT: Final = 1 << 40
"""The height of a tile that multiplies nothing."""


class Tiles:
    """The tables of tiles that the loops look up, filled with what a shape needs before it runs."""

    def __init__(self, kind: Kind, target: Machine) -> None:
        registers = target.registers
        heights = (most_rows(registers, v) for v in range(1, WIDEST_ALONE + 1))
        self.kind, self.target = kind, target
        self.heights = array("q", [NO_LIMIT, *heights])
        self.rows = array("q", [0] * (PLACES * (WIDEST_ALONE + 1)))
        self.columns = array("q", [0] * (PLACES * (WIDEST + 1)))
        self.column_widest = column_widest(registers)
        self.line_height = line_rows(registers)
        self.lines = array("q", [0] * (self.line_height + 1))
        self._there: set[tuple[str, int]] = set()

    def need(self, rows: Iterable[int], columns: Iterable[int] = ()) -> None:
        """Fill in the tiles of these numbers of vectors."""
        wanted = [("tile", v) for v in rows] + [("column", v) for v in columns]
        for name, v in wanted:
            if (name, v) not in self._there:  # two threads at once write the same addresses
                self._fill(name, v)
                self._there.add((name, v))

    def need_lines(self, rows: int) -> None:
        """Fill in the tiles of weights as they lie, for products of so many rows."""
        at_once = max(self.kind.lanes, self.line_height)
        for r in {min(rows, at_once), rows % at_once} - {0}:
            height = r if r <= self.line_height else 0
            if not self.lines[height]:
                self.lines[height] = self._line_tile(height)

    def _line_tile(self, height: int) -> int:
        kind, name = self.kind, f"line_tile_{height}" if height else "row_tile"
        code = _load(name, kind, self.target, lambda modules: modules.line_module(kind, height))
        return code.address(name)

    def _fill(self, name: str, v: int) -> None:
        kind, target = self.kind, self.target

        def write(modules: Any) -> Any:
            if name == "column":
                return modules.columns_module(kind, v)
            return modules.tiles_module(kind, target.registers, v)

        code = _load(f"{name} {v}", kind, target, write)
        heights = COLUMN_ROWS if name == "column" else range(1, self.heights[v] + 1)
        table = self.columns if name == "column" else self.rows
        for r in heights:
            table[v * PLACES + r] = code.address(f"{name}_{v}_{r}")


tiles_of = functools.cache(Tiles)
"""The tables of a kind of numbers and a machine, which live as long as the process."""


@dataclass(frozen=True)
class Code:
    """One direction of computing, forward or backward, of one cell.

    Attributes:
        kind: the numbers it computes with.
        region: address of what every thread of a team runs.
        cell: address of the cell's own function.
        phases: of those before the phases that multiply something else than the old output.
        tiles: the tables it looks up.
    """

    kind: Kind
    region: int
    cell: int
    phases: tuple[int, ...]
    tiles: Tiles


def forward_code(plan: Plan, bytes: int, target: Machine, keep: bool) -> Code:
    """The forward pass of a cell, in numbers of so many bytes; with `keep` for a backward pass."""
    return _code(plan, bytes, target, "forward", keep)


def backward_code(plan: Plan, bytes: int, target: Machine) -> Code:
    """The backward pass."""
    return _code(plan, bytes, target, "backward", True)


_READY: dict[tuple[str, int, Machine, str, bool], Code] = {}


def _code(plan: Plan, bytes: int, target: Machine, name: str, keep: bool) -> Code:
    place = (plan.key, bytes, target, name, keep)
    if place not in _READY:
        _READY[place] = _made(plan, bytes, target, name, keep)
    return _READY[place]


def _made(plan: Plan, bytes: int, target: Machine, name: str, keep: bool) -> Code:
    kind = Kind(bytes, target.lanes(8 * bytes))

    def write_cell(modules: Any) -> Any:
        if name == "backward":
            return modules.backward_module(kind, plan)
        return modules.forward_module(kind, plan, keep)

    def write_loops(modules: Any) -> Any:
        return modules.loops_module(kind, target, name == "backward")

    cell = _load(f"{name} {keep} {plan.key}", kind, target, write_cell)
    return Code(
        kind,
        _load(f"loops {name}", kind, target, write_loops).address(name),
        cell.address(f"cell_{name}"),
        tuple(cell.address(f"phase_{name}_{slot}") for slot in range(len(plan.computed))),
        tiles_of(kind, target),
    )


def _load(name: str, kind: Kind, target: Machine, write: Callable[[Any], Any]) -> Loaded:
    """Code by its name; `write` makes it of the module that writes code."""

    def text() -> str:
        from throughtime.compiler.llvm import modules  # only where the cache has none

        return machine.text(write(modules), target)

    return load(f"{name} {kind}", text, target)


def stream_region(kind: Kind, target: Machine) -> int:
    """Address of what works off the program of a stream."""
    code = _load("stream", kind, target, lambda modules: modules.stream_module(kind, target))
    return code.address("stream")


def stream_tile(kind: Kind, target: Machine, rows: int, vectors: int, narrow: bool) -> int:
    """Address of a tile for so many rows of a stream; narrow: its weights are bfloat16."""
    name = f"{'narrow_' * narrow}tile"
    code = _load(
        f"stream {name} {rows} {vectors}", kind, target,
        lambda modules: modules.tile_module(kind, rows, vectors, narrow),
    )  # fmt: skip
    return code.address(f"{name}_{vectors}_{rows}")


@functools.cache
def team_caller(target: Machine) -> int:
    """Address of what calls a function on a team, or alone."""
    kind = Kind(4, target.lanes(32))  # it computes nothing
    return _load("team", kind, target, lambda modules: modules.team_module(kind)).address("on_team")


def dispatcher_kernels(target: Machine) -> dict[str, int]:
    """Addresses of kernels of torch's dispatcher, and of the word that is to point to functions."""
    kind = Kind(4, target.lanes(32))  # they compute nothing
    code = _load("kernels", kind, target, lambda modules: modules.kernels_module(kind))
    return {name: code.address(name) for name in ("forward", "backward", "carry", "table")}
