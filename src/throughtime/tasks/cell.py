"""The cell that a recipe names."""

from __future__ import annotations

from throughtime import cells
from throughtime.cells import Cell

KINDS: dict[str, type[Cell]] = {"rnn": cells.Elman, "gru": cells.GRU, "lstm": cells.LSTM}
"""By their names in a recipe."""


def cell_called(name: str) -> Cell:
    """The cell of a recipe's name, as it comes."""
    return KINDS[name]()
