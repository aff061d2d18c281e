"""The gated recurrent unit as it was published: the reset before the product."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell


class GRUResetBefore(Cell):
    """The gated recurrent unit, its reset r before the product: U_n (r * h_{t-1}) + b.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder (2014),
    equations 5 to 8, with biases; z keeps the old state, as there.
    """

    gates = ("r", "z", "n")
    state = ("h",)
    keeps = {"z": 1}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        r = sigmoid(a.r + U.r @ s.h)
        z = sigmoid(a.z + U.z @ s.h)
        n = tanh(a.n + U.n @ (r * s.h))
        h = (1 - z) * n + z * s.h
        return (h,)
