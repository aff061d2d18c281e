"""Long short-term memory with peepholes."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell


class LSTMPeephole(Cell):
    """Long short-term memory whose gates see the long memory: i and f the old c, o the new one.

    Source: Gers, Schraudolph and Schmidhuber, Learning Precise Timing with LSTM Recurrent
    Networks (2002), one peephole a unit (diagonal matrices), as in equations 7 to 11 of Graves,
    Generating Sequences With Recurrent Neural Networks (2013).
    """

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    keeps = {"f": 1}
    writes = {"i": 1}
    vectors = {"w_ci": 0.0, "w_cf": 0.0, "w_co": 0.0}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        i = sigmoid(a.i + U.i @ s.h + p.w_ci * s.c)
        f = sigmoid(a.f + U.f @ s.h + p.w_cf * s.c)
        g = tanh(a.g + U.g @ s.h)
        c = f * s.c + i * g
        o = sigmoid(a.o + U.o @ s.h + p.w_co * c)
        h = o * tanh(c)
        return h, c
