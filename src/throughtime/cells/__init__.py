"""The cells: one a file, each its textbook equations. A new file is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

from throughtime.cell.contract import Cell as Cell

if TYPE_CHECKING:  # written by docs/make_cells.py
    from throughtime.cells.cornn import CoRNN as CoRNN
    from throughtime.cells.elman import Elman as Elman
    from throughtime.cells.gru import GRU as GRU
    from throughtime.cells.gru_layer_norm import GRULayerNorm as GRULayerNorm
    from throughtime.cells.gru_reset_before import GRUResetBefore as GRUResetBefore
    from throughtime.cells.grud import GRUD as GRUD
    from throughtime.cells.indrnn import IndRNN as IndRNN
    from throughtime.cells.lem import LEM as LEM
    from throughtime.cells.lstm import LSTM as LSTM
    from throughtime.cells.lstm_coupled import LSTMCoupled as LSTMCoupled
    from throughtime.cells.lstm_layer_norm import LSTMLayerNorm as LSTMLayerNorm
    from throughtime.cells.lstm_peephole import LSTMPeephole as LSTMPeephole
    from throughtime.cells.lstm_projected import LSTMProjected as LSTMProjected
    from throughtime.cells.mgu import MGU as MGU
    from throughtime.cells.skip import Skip as Skip
    from throughtime.cells.slstm import SLSTM as SLSTM


@cache
def available() -> dict[str, type[Cell]]:
    """Every cell of this package by its class name, in alphabetical order."""
    found: dict[str, type[Cell]] = {}
    for module in pkgutil.iter_modules(__path__):
        content = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for name, value in content.items():
            if isinstance(value, type) and issubclass(value, Cell) and value is not Cell:
                found[name] = value
    return dict(sorted(found.items()))


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in available():
        raise AttributeError(f"throughtime.cells has no cell {name!r}: {', '.join(available())}")
    return available()[name]


def __dir__() -> list[str]:
    return [*available(), "Cell", "available"]
