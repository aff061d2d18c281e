"""The coupled oscillatory recurrent network."""

from __future__ import annotations

from typing import Any

from torch import tanh

from throughtime.cell.contract import Cell
from throughtime.errors import CellError


class CoRNN(Cell):
    """The coupled oscillatory network: damped, driven oscillators of position y and velocity z.

    Args:
        dt: the time step.
        gamma: how strongly a unit is pulled back to 0.
        epsilon: how strongly its velocity is damped.

    Source: Rusch and Mishra, Coupled Oscillatory Recurrent Neural Network (2021), its discrete
    scheme, with tanh and explicit damping (that of z_{t-1}), as the authors' code has it; the
    implicit damping of z_t is left out. The numbers are one for all units and chosen for each
    task: the defaults are those of the authors' code for sequential MNIST. Each product with a
    state has a bias besides that of W, which the paper does not have.
    """

    gates = ("y", "z")
    state = ("y", "z")

    def __init__(self, dt: float = 0.042, gamma: float = 2.7, epsilon: float = 4.7) -> None:
        for name, value in (("dt", dt), ("gamma", gamma), ("epsilon", epsilon)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < float("inf"):
                raise CellError(f"{name} must be a finite number above 0, got {value!r}")
        self.dt, self.gamma, self.epsilon = float(dt), float(gamma), float(epsilon)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        force = tanh(a.y + U.y @ s.y + U.z @ s.z)
        z = s.z + self.dt * (force - self.gamma * s.y - self.epsilon * s.z)
        y = s.y + self.dt * z
        return y, z
