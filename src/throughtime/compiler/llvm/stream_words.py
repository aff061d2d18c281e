"""How a stream's program lies in memory, and how large its tiles are; known without writing any."""

from __future__ import annotations

from typing import Final

from throughtime.compiler.llvm.tile_sizes import WIDEST, most_rows

HEAD: Final = 2
"""Words before the operations: how often they run, and how many there are."""

OPERATION: Final = 20
"""Words of an operation: its kind, its function's address, as many arguments as a cell takes."""

TILE: Final = 0
CELL: Final = 1
STAGE: Final = 2
ADD: Final = 3
"""Kinds of operations."""


def widest(registers: int, rows: int) -> int:
    """Vectors of a tile: one row alone needs many chains to keep the multipliers busy."""
    return (16 if registers == 32 else 8) if rows == 1 else WIDEST


def highest(registers: int, rows: int, narrow: bool) -> int:
    """Rows of a tile; a narrow one holds two numbers of each row beside the chains."""
    most = registers // 8 if narrow else most_rows(registers, WIDEST)
    return min(rows, most)
