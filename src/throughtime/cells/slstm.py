"""Long short-term memory with exponential gates."""

from __future__ import annotations

from typing import Any

from torch import clamp, exp, maximum, sigmoid, tanh, where
from torch.nn.functional import logsigmoid

from throughtime.cell.contract import Cell
from throughtime.errors import CellError


class SLSTM(Cell):
    """Long short-term memory with exponential gates: c is what came in, n how much, h their ratio.

    Args:
        forget: "sigmoid" or "exp", what the forget gate is; the input gate is exp.

    Source: Beck et al., xLSTM: Extended Long Short-Term Memory (2024), equations 8 to 17, without
    heads: U is full, not block-diagonal. The paper's block around the cell (convolution, group
    norm, projections) is left out. The state m keeps exp from overflowing and cancels in h. Where
    nothing has come in yet (n = 0) m is that of the input gate alone, as in the authors' code, so
    that h is right however small the first gate. Zoneout parts m from the c and n that it keeps
    small, unit by unit, and values may overflow: leave it off.
    """

    gates = ("i", "f", "z", "o")
    state = ("h", "c", "n", "m")
    keeps = {"f": 1}
    writes = {"i": 1}

    def __init__(self, forget: str = "sigmoid") -> None:
        if forget not in ("sigmoid", "exp"):
            raise CellError(f"forget must be sigmoid or exp, got {forget!r}")
        self.forget = forget
        if forget == "exp":  # no bias of it means a time scale
            self.keeps, self.writes = {}, {}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any, Any]:
        log_i = a.i + U.i @ s.h
        log_f = a.f + U.f @ s.h
        if self.forget == "sigmoid":
            log_f = logsigmoid(log_f)
        z = tanh(a.z + U.z @ s.h)
        o = sigmoid(a.o + U.o @ s.h)
        m = where(s.n == 0, log_i, maximum(log_f + s.m, log_i))
        i = exp(log_i - m)
        f = exp(clamp(log_f + s.m - m, max=80.0))  # above 0 only where n = 0; finite there
        c = f * s.c + i * z
        n = f * s.n + i
        h = o * (c / n)
        return h, c, n, m
