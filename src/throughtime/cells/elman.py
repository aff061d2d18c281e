"""The vanilla recurrent network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from throughtime.cell.contract import Cell, activation_function


class Elman(Cell):
    """The vanilla recurrent network: h_t = s_h(W_h x_t + U_h h_{t-1} + b_h).

    Args:
        activation: the pointwise function s_h: "tanh", "relu", "sigmoid", "identity",
            or a function of your own.

    Source: Elman, Finding Structure in Time (1990). With tanh or relu, torch.nn.RNN.
    """

    gates = ("h",)
    state = ("h",)

    def __init__(self, activation: str | Callable[[Tensor], Tensor] = "tanh") -> None:
        self.activation = activation_function(activation)
        if activation in ("tanh", "relu"):
            self.torch_equivalent = f"RNN_{str(activation).upper()}"

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        h = self.activation(a.h + U.h @ s.h)
        return (h,)
