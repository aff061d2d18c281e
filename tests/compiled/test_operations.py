"""Every operation that a cell may be written with is compiled rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch.nn import functional as F

from tests.compiled.calls import Sizes, check_call, random_call
from throughtime import Cell

FUNCTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "sin": torch.sin, "cos": torch.cos, "atan": torch.atan, "erf": torch.erf, "gelu": F.gelu,
    "cube": lambda v: v**3, "power": lambda v: torch.abs(v).add(0.1) ** 1.7, "expm1": torch.expm1,
    "log": lambda v: torch.log(torch.abs(v) + 0.1), "log1p": lambda v: torch.log1p(v * v),
    "sqrt": lambda v: torch.sqrt(torch.abs(v) + 0.1), "rsqrt": lambda v: (v * v + 0.1).rsqrt(),
    "reciprocal": lambda v: torch.reciprocal(v * v + 1), "sign": lambda v: torch.sign(v) * v,
    "leaky_relu": F.leaky_relu, "relu6": F.relu6, "hardtanh": F.hardtanh, "elu": F.elu,
    "selu": F.selu, "celu": lambda v: F.celu(v, 0.5), "silu": F.silu, "mish": F.mish,
    "logsigmoid": F.logsigmoid, "softsign": F.softsign, "tanhshrink": F.tanhshrink,
    "softplus": lambda v: F.softplus(v, 2.0), "lerp": lambda v: torch.lerp(v, v * v, 0.3),
    "addcmul": lambda v: torch.addcmul(v, v, v, value=0.5), "relu": torch.relu,
    "clamp": lambda v: torch.clamp(v, min=-0.2), "detach": lambda v: v + (v * v).detach(),
    "both": lambda v: torch.where((v > -0.5) & (v < 0.4), v * v, v),
    "truth": lambda v: v * (v > 0.1),
    "filled": lambda v: torch.where(v < 0, torch.full_like(v, 0.3), v),
}  # fmt: skip


class Through(Cell):
    """h = tanh(f(W x + U h + b) + h / 2).

    Args:
        name: of f.
    """

    gates = ("h",)
    state = ("h",)

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(FUNCTIONS[self.name](a.h + U.h @ s.h) + 0.5 * s.h),)


class Chosen(Cell):
    """A choice between two gates: what was chosen is a truth, which backward needs again."""

    gates = ("h", "k")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        v, u = a.h + U.h @ s.h, a.k + U.k @ s.h
        return (torch.tanh(torch.where(u > v, u * 0.5, s.h)),)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_is_right(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        check_call(random_call(Through(name), dtype, Sizes(4, 3, 5, 19), "state"))


def test_a_choice_between_gates_is_differentiated() -> None:
    for dtype in (torch.float32, torch.float64):
        check_call(random_call(Chosen(), dtype, Sizes(4, 3, 5, 19), "state"))
