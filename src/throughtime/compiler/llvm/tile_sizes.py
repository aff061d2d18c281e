"""Sizes of the register tiles: what is known of them without writing any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

WIDEST: Final = 4
"""Vectors of the widest tile."""

MOST_LANES: Final = 16
"""Numbers of the widest vector of any machine."""

PLACES: Final = 16
"""Entries of the table of tiles for each number of vectors."""

COLUMN_ROWS: Final = (8, 4, 2, 1)
"""Rows of the column tiles."""

_ROWS: Final = {32: {4: 6, 3: 8, 2: 12, 1: 12}, 16: {4: 3, 3: 4, 2: 6, 1: 8}}


def most_rows(registers: int, vectors: int) -> int:
    """The rows of the highest tile of so many vectors, on a machine of so many registers."""
    return _ROWS[registers][vectors]


def column_widest(registers: int) -> int:
    """Vectors of the widest column tile, which is COLUMN_ROWS[0] rows high."""
    return 3 if registers == 32 else 1


def part_sizes(total: int, most: int) -> set[int]:
    """The sizes of the parts that `total` things are cut into, as products.parts_of cuts them."""
    if total == 0:
        return set()
    count = -(-total // most)
    return {total // count, -(-total // count)}


def panel_vectors(blocks: int, panel: int, gates: int) -> set[int]:
    """The widths of the tiles of U: panels of unit blocks, cut into tiles."""
    widths: Iterable[int] = part_sizes(blocks, panel)
    return {v for some in widths for v in part_sizes(some * gates, WIDEST)}
