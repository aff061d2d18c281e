"""The cell that a recipe names."""

from __future__ import annotations

from throughtime import cells
from throughtime.cells import Cell


def cell_called(name: str) -> Cell:
    """The cell of a recipe's name, as it comes."""
    kinds = {"rnn": cells.Elman, "gru": cells.GRU, "lstm": cells.LSTM}
    made: Cell = kinds[name]()
    return made
