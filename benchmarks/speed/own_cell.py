"""A cell such as a user writes: an LSTM with peepholes whose forget gate is 1 - i."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime import Cell


class CoupledPeephole(Cell):
    """Long short-term memory with peepholes that forgets as much as it takes in."""

    gates = ("i", "g", "o")
    state = ("h", "c")
    vectors = {"w_ci": 0.0, "w_co": 0.0}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        i = sigmoid(a.i + U.i @ s.h + p.w_ci * s.c)
        g = tanh(a.g + U.g @ s.h)
        c = (1 - i) * s.c + i * g
        o = sigmoid(a.o + U.o @ s.h + p.w_co * c)
        h = o * tanh(c)
        return h, c
