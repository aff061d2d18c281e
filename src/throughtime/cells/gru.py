"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell


class GRU(Cell):
    """The gated recurrent unit, its reset r after the product: r * (U_n h_{t-1} + b).

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder (2014), in the
    variant of torch.nn.GRU and cuDNN; version 1 of the paper's preprint has the same reset.
    """

    gates = ("r", "z", "n")
    state = ("h",)
    keeps = {"z": 1}
    torch_equivalent = "GRU"

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        r = sigmoid(a.r + U.r @ s.h)
        z = sigmoid(a.z + U.z @ s.h)
        n = tanh(a.n + r * (U.n @ s.h))
        h = (1 - z) * n + z * s.h
        return (h,)
