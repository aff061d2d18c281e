"""Long short-term memory with coupled input and forget gate (CIFG)."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell


class LSTMCoupled(Cell):
    """Long short-term memory that forgets exactly as much as it takes in: f = 1 - i.

    Source: Greff, Srivastava, Koutnik, Steunebrink and Schmidhuber, LSTM: A Search Space Odyssey
    (2017), variant CIFG, here without peepholes.
    """

    gates = ("i", "g", "o")
    state = ("h", "c")
    keeps = {"i": -1}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        i = sigmoid(a.i + U.i @ s.h)
        f = 1 - i
        g = tanh(a.g + U.g @ s.h)
        o = sigmoid(a.o + U.o @ s.h)
        c = f * s.c + i * g
        h = o * tanh(c)
        return h, c
