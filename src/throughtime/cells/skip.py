"""A vanilla network with a skip connection through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from throughtime.cell.contract import Cell, activation_function
from throughtime.errors import CellError

FARTHEST: Final = 256
"""Steps that the farthest connection may skip."""


class Skip(Cell):
    """A vanilla network that also reads the state of d steps ago: U_h h_{t-1} + U_skip h_{t-d}.

    The price is the state: d vectors are carried instead of one. At step t, `s.h` is h_{t-1} and
    `s.hk` is h_{t-1-k}, for k = 1 .. d-1.

    Args:
        distance: d, from 2 to 256.
        activation: the pointwise function, as in Elman.

    Source: Lin, Horne, Tino and Giles, Learning Long-Term Dependencies in NARX Recurrent Neural
    Networks (1996), the case of two lags, 1 and d; El Hihi and Bengio (1995) for the idea.
    """

    gates = ("h", "skip")

    def __init__(
        self, distance: int, activation: str | Callable[[Tensor], Tensor] = "tanh"
    ) -> None:
        if not isinstance(distance, int) or isinstance(distance, bool) or distance < 2:
            raise CellError(f"distance must be an integer of at least 2, got {distance!r}")
        if distance > FARTHEST:
            raise CellError(
                f"distance must be at most {FARTHEST}, since so many states are carried, "
                f"got {distance!r}"
            )
        self.distance = distance
        self.activation = activation_function(activation)
        self.state = ("h", *(f"h{k}" for k in range(1, distance)))

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, ...]:
        past = [getattr(s, name) for name in self.state]
        h = self.activation(a.h + U.h @ past[0] + U.skip @ past[-1])
        return h, *past[:-1]
