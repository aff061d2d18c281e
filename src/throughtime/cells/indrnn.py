"""The independently recurrent network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from throughtime.cell.contract import Cell, activation_function


class IndRNN(Cell):
    """The independently recurrent network: every unit sees only its own past, through u.

    Args:
        activation: the pointwise function: "tanh", "relu", "sigmoid", "identity", or a function
            of your own.

    Source: Li, Li, Cook, Zhu and Gao, Independently Recurrent Neural Network (2018), equation 2.
    Here u starts at 1, the value at which a linear unit neither forgets nor explodes.
    """

    gates = ("h",)
    state = ("h",)
    vectors = {"u": 1.0}

    def __init__(self, activation: str | Callable[[Tensor], Tensor] = "relu") -> None:
        self.activation = activation_function(activation)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        h = self.activation(a.h + p.u * s.h)
        return (h,)
