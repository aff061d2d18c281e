"""Every cell of the package, built at least once; a test fails when one is missing."""

from __future__ import annotations

import torch

from throughtime import cells
from throughtime.cells import Cell

CELLS: list[Cell] = [
    cells.Elman(),
    cells.Elman("relu"),
    cells.Elman("sigmoid"),
    cells.Elman("identity"),
    cells.Elman(torch.nn.functional.softplus),
    cells.LSTM(),
    cells.LSTMProjected(2),
    cells.LSTMProjected(9),
    cells.GRU(),
    cells.GRUResetBefore(),
    cells.LSTMPeephole(),
    cells.LSTMCoupled(),
    cells.MGU(),
    cells.IndRNN(),
    cells.IndRNN("tanh"),
    cells.Skip(2),
    cells.Skip(4, "relu"),
    cells.LSTMLayerNorm(),
    cells.GRULayerNorm(),
    cells.GRUD(),
    cells.LEM(),
    cells.LEM(0.5),
    cells.CoRNN(),
    cells.CoRNN(0.3, 1.5, 0.8),
    cells.SLSTM(),
    cells.SLSTM("exp"),
]
