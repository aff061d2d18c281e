"""Long short-term memory with a projection: long and short memory of different size."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell
from throughtime.errors import CellError


class LSTMProjected(Cell):
    """Long short-term memory whose short memory h is a projection of the long memory's output.

    Args:
        proj_size: the width of h; c has hidden_size. It may be smaller or larger than c.

    Source: Sak, Senior and Beaufays, Long Short-Term Memory Recurrent Neural Network
    Architectures for Large Scale Acoustic Modeling (2014), without peepholes and without the
    non-recurrent projection. The variant of torch.nn.LSTM(proj_size=...).
    """

    gates = ("i", "f", "g", "o")
    state = {"h": "proj_size", "c": "hidden_size"}
    products = {"hr": ("h", "c")}
    keeps = {"f": 1}
    writes = {"i": 1}
    torch_equivalent = "LSTM"

    def __init__(self, proj_size: int) -> None:
        if not isinstance(proj_size, int) or isinstance(proj_size, bool) or proj_size < 1:
            raise CellError(f"proj_size must be a positive integer, got {proj_size!r}")
        self.proj_size = proj_size

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        i = sigmoid(a.i + U.i @ s.h)
        f = sigmoid(a.f + U.f @ s.h)
        g = tanh(a.g + U.g @ s.h)
        o = sigmoid(a.o + U.o @ s.h)
        c = f * s.c + i * g
        h = U.hr @ (o * tanh(c))
        return h, c
