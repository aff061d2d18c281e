"""Long expressive memory."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh

from throughtime.cell.contract import Cell
from throughtime.errors import CellError


class LEM(Cell):
    """Long expressive memory: two states, each with a time step that is learned at every step.

    Args:
        dt: the longest time step, above 0; a time gate opens each state to at most this share.

    Source: Rusch, Mishra, Erichson and Mahoney, Long Expressive Memory for Sequence Modeling
    (2022), its discrete scheme, with tanh. The slow state z is stepped first, and y, the output,
    reads the new z. Each product with a state has a bias besides that of W, which the paper does
    not have.
    """

    gates = ("t", "r", "z", "y")
    state = ("y", "z")
    keeps = {"t": -1, "r": -1}

    def __init__(self, dt: float = 1.0) -> None:
        if isinstance(dt, bool) or not isinstance(dt, int | float) or not 0 < dt < float("inf"):
            raise CellError(f"dt must be a finite number above 0, got {dt!r}")
        self.dt = float(dt)
        if dt != 1:  # an open gate keeps something still: no bias alone means a time scale
            self.keeps = {}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        t = self.dt * sigmoid(a.t + U.t @ s.y)
        r = self.dt * sigmoid(a.r + U.r @ s.y)
        z = (1 - t) * s.z + t * tanh(a.z + U.z @ s.y)
        y = (1 - r) * s.y + r * tanh(a.y + U.y @ z)
        return y, z
