"""Sizes of numbers, register tiles and streams, known without writing any code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Kind:
    """The numbers a function computes with.

    Attributes:
        bytes: of one number, 4 or 8.
        lanes: numbers in a vector.
    """

    bytes: int
    lanes: int

    @property
    def real(self) -> Any:
        """One number, as LLVM has it."""
        from llvmlite import ir

        return ir.FloatType() if self.bytes == 4 else ir.DoubleType()

    @property
    def vector(self) -> Any:
        """As many as a register holds."""
        from llvmlite import ir

        return ir.VectorType(self.real, self.lanes)

    @property
    def size(self) -> int:
        """Bytes of a vector."""
        return self.bytes * self.lanes


WIDEST: Final = 4
"""Vectors of the widest tile of several rows."""

WIDEST_ALONE: Final = 8
"""Vectors of the widest tile of one row, which needs many chains to keep the multipliers busy."""

MOST_LANES: Final = 16
"""Numbers of the widest vector of any machine."""

PLACES: Final = 16
"""Entries of the table of tiles for each number of vectors."""

COLUMN_ROWS: Final = (8, 4, 2, 1)
"""Rows of the column tiles."""

_ROWS: Final = {32: {4: 6, 3: 8, 2: 12, 1: 12}, 16: {4: 3, 3: 4, 2: 6, 1: 8}}


def line_rows(registers: int) -> int:
    """The rows of the highest tile of lines: a square of vectors needs half of the registers."""
    return registers // 4


def most_rows(registers: int, vectors: int) -> int:
    """The rows of the highest tile of so many vectors, on a machine of so many registers."""
    return _ROWS[registers].get(vectors, 1)


def column_widest(registers: int) -> int:
    """Vectors of the widest column tile, which is COLUMN_ROWS[0] rows high."""
    return 3 if registers == 32 else 1


def part_sizes(total: int, most: int) -> set[int]:
    """The sizes of the parts that `total` things are cut into, as products.parts_of cuts them."""
    if total == 0:
        return set()
    count = -(-total // most)
    return {total // count, -(-total // count)}


def panel_vectors(blocks: int, panel: int, gates: int, most: int) -> set[int]:
    """The widths of the tiles of U: panels of unit blocks, cut into tiles of at most `most`."""
    widths: Iterable[int] = part_sizes(blocks, panel)
    return {v for some in widths for v in part_sizes(some * gates, most)}


HEAD: Final = 2
"""Words before the operations: how often they run, and how many there are."""

OPERATION: Final = 20
"""Words of an operation: its kind, its function's address, as many arguments as a cell takes."""

TILE: Final = 0
CELL: Final = 1
PHASE: Final = 2
ADD: Final = 3
"""Kinds of operations."""


def widest(registers: int, rows: int) -> int:
    """Vectors of a tile: one row alone needs many chains to keep the multipliers busy."""
    return (16 if registers == 32 else 8) if rows == 1 else WIDEST


def highest(registers: int, rows: int, narrow: bool) -> int:
    """Rows of a tile; a narrow one holds two numbers of each row besides the chains."""
    most = registers // 8 if narrow else most_rows(registers, WIDEST)
    return min(rows, most)
