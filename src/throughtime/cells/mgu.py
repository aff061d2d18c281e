"""The minimal gated unit."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell


class MGU(Cell):
    """The minimal gated unit: one gate f both resets and updates; f = 0 keeps the old state.

    Source: Zhou, Wu, Zhang and Zhou, Minimal Gated Unit for Recurrent Neural Networks (2016).
    """

    gates = ("f", "n")
    state = ("h",)
    keeps = {"f": -1}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        f = sigmoid(a.f + U.f @ s.h)
        n = tanh(a.n + U.n @ (f * s.h))
        h = (1 - f) * s.h + f * n
        return (h,)
