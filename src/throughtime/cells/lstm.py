"""Long short-term memory."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell


class LSTM(Cell):
    """Long short-term memory: a long memory c behind gates, a short one h.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory (1997); with the forget gate of
    Gers, Schmidhuber and Cummins, Learning to Forget (2000). The variant of torch.nn.LSTM.
    """

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    keeps = {"f": 1}
    writes = {"i": 1}
    torch_equivalent = "LSTM"

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        i = sigmoid(a.i + U.i @ s.h)
        f = sigmoid(a.f + U.f @ s.h)
        g = tanh(a.g + U.g @ s.h)
        o = sigmoid(a.o + U.o @ s.h)
        c = f * s.c + i * g
        h = o * tanh(c)
        return h, c
