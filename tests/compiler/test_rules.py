"""Every rule against autograd in float64, at random points, kinks, ties and infinities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiler.interpret import Given, assert_equal_to_autograd
from throughtime.cells import Cell
from throughtime.compiler import derivative, trace
from throughtime.compiler.derivative import FLAT, RULES
from throughtime.compiler.operations import OPERATIONS

INF, NAN = float("inf"), float("nan")
# As many points as fill whole vectors: at NaN autograd's vector code has answers of its own.
KINKS = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 0.5, 6.0, 20.0, 21.0]
POINTS = [*KINKS, 0.3, -0.7, 2.4, -8.2, 40.0, -40.0, 1e-9, INF, -INF, NAN]


class Expression(Cell):
    """A step that computes one expression of the input x and the old state w."""

    gates = ("h",)
    state = ("h",)
    vectors = {"u": 1.0}

    def __init__(self, expression: Callable[[Any, Any], Any]) -> None:
        self.expression = expression

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (self.expression(a.h, s.h),)


UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": lambda x: -x,
    "torch.neg": torch.neg,
    "reciprocal": torch.reciprocal,
    "1 / x": lambda x: 1 / x,
    "square": torch.square,
    "x ** 2": lambda x: x**2,
    "x ** 3": lambda x: x**3,
    "x ** 1": lambda x: x**1,
    "x ** 0": lambda x: x**0,
    "x ** -1.5": lambda x: x**-1.5,
    "x ** 0.5": lambda x: torch.pow(x, 0.5),
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "erf": torch.erf,
    "special.erf": torch.special.erf,
    "abs": abs,
    "absolute": torch.absolute,
    "sign": lambda x: x * torch.sign(x),
    "sgn": lambda x: x * torch.sgn(x),
    "detach": lambda x: x * x.detach(),
    "sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "special.expit": torch.special.expit,
    "method sigmoid": lambda x: x.sigmoid(),
    "tanh": torch.tanh,
    "F.tanh": F.tanh,
    "module": torch.nn.Tanh(),
    "relu": torch.relu,
    "F.relu": F.relu,
    "clamp(0)": lambda x: x.clamp(0),
    "clamp": lambda x: torch.clamp(x, -1, 3),
    "clip": lambda x: x.clip(max=0.5),
    "clamp_min": lambda x: x.clamp_min(-1),
    "clamp_max": lambda x: torch.clamp_max(x, 1),
    "clamp upside down": lambda x: torch.clamp(x, 3, -1),
    "hardtanh": F.hardtanh,
    "hardtanh(0, 3)": lambda x: F.hardtanh(x, 0, 3),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "leaky_relu(2)": lambda x: F.leaky_relu(x, 2),
    "elu": F.elu,
    "elu(0.3)": lambda x: F.elu(x, 0.3),
    "selu": F.selu,
    "celu(2)": lambda x: F.celu(x, 2.0),
    "softplus": F.softplus,
    "softplus(2, 6)": lambda x: F.softplus(x, 2, 6),
    "silu": F.silu,
    "gelu": F.gelu,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "positive": lambda x: +x,
    "clone": lambda x: x.clone().contiguous(),
    "x + x": lambda x: x + x,
    "1 - x": lambda x: 1 - x,
    "x - 1": lambda x: x - 1,
    "2 * x": lambda x: 2 * x,
    "True * x": lambda x: True * x,
    "x / 3": lambda x: x / 3,
    "rsub": lambda x: torch.rsub(x, 3, alpha=2),
    "tensor * x": lambda x: torch.tensor(0.3) * x,
    "tensor - x": lambda x: torch.tensor(0.3) - x,
    "tensor / x": lambda x: torch.tensor(0.3) / x,
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "ones_like": lambda x: torch.ones_like(x) - x,
    "full_like": lambda x: x * torch.full_like(x, 3),
    "signed zeros": lambda x: torch.where(x > 0, 1 / (x * 0.0), 1 / (x * -0.0)),
    "x * (x > 1)": lambda x: x * (x > 1),
    "step": lambda x: x * torch.where(x >= 1, 1.0, 0.0),
    "between": lambda x: torch.where((x > -1) & (x < 3) | (x == 6), x, 2 * x),
    "not": lambda x: torch.where(~(x <= 0), x, -x),
    "logical": lambda x: torch.where(torch.logical_not(torch.logical_or(x > 1, x < 0)), x, 0.5),
    "where number": lambda x: torch.where(x != 1, 0.1, x),
    "width": lambda x: x * x.shape[-1] ** -0.5,
    "size": lambda x: x / x.size(-1) + x.size()[1],
}

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, w: x + w,
    "add alpha": lambda x, w: torch.add(x, w, alpha=3),
    "sub": lambda x, w: x - w,
    "sub alpha": lambda x, w: x.sub(w, alpha=0.5),
    "mul": lambda x, w: x * w,
    "div": lambda x, w: x / w,
    "torch.div": torch.div,
    "maximum": torch.maximum,
    "max": torch.max,
    "minimum": torch.minimum,
    "min": lambda x, w: x.min(w),
    "where gt": lambda x, w: torch.where(x > w, x, w),
    "where le": lambda x, w: torch.where(x.le(w), x * w, w),
    "where eq": lambda x, w: torch.where(x == w, x, 2 * w),
    "where less": lambda x, w: torch.where(torch.less(x, w) & (w != 3), x, w),
    "addcmul": lambda x, w: torch.addcmul(x, w, w, value=2),
    "addcdiv": lambda x, w: torch.addcdiv(x, w, x, value=2),
    "same value twice": lambda x, w: (x * w) * (x * w),
}

SMOOTH: dict[str, Callable[[Any, Any], Any]] = {
    "amax": lambda x, w: x * w.amax(-1, keepdim=True) + w.amin(-1, keepdim=True),
    "norm": lambda x, w: x * torch.linalg.vector_norm(w, dim=-1, keepdim=True),
    "cumsum": lambda x, w: w * torch.cumsum(x * w, -1),
    "no eps": lambda x, w: F.rms_norm(x * w, x.shape[-1:]),
    "lerp": lambda x, w: torch.lerp(x, w, torch.sigmoid(x)),
    "lerp number": lambda x, w: torch.lerp(x, w, 0.7),
    "row sum": lambda x, w: w - x.sum(-1, keepdim=True),
    "row sum alone": lambda x, w: x.exp().sum(1, True) * w,
    "row mean": lambda x, w: w * (x * w).mean(dim=(-1,), keepdim=True),
    "softmax": lambda x, w: torch.softmax(x * w, -1),
    "F.softmax": lambda x, w: F.softmax(x * w, dim=-1),
    "layer_norm": lambda x, w: F.layer_norm(x * w, x.shape[-1:]),
    "torch.layer_norm": lambda x, w: torch.layer_norm(x * w, w.shape[-1:], None, None, 1e-3, False),
    "layer_norm affine": lambda x, w: F.layer_norm(x, (x.shape[-1],), None, None, 0.3) * w,
    "rms_norm": lambda x, w: F.rms_norm(x * w, x.shape[1:], eps=0.1),
    "own norm": lambda x, w: w * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-3),
}


def given(cell: Cell, x: Tensor, w: Tensor) -> Given:
    values = Given(cell, hidden_size=x.shape[1], rows=x.shape[0])
    values.a["h"], values.s["h"] = x, w
    return values


def grid() -> tuple[Tensor, Tensor]:
    """Every pair of points, ties among them."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    return points.repeat(len(points), 1), points[:, None].repeat(1, len(points))


@pytest.mark.parametrize("name", UNARY)
def test_rules_of_one_value(name: str) -> None:
    cell = Expression(lambda x, w: UNARY[name](x))
    x = torch.cat([grid()[0][:2], torch.randn(2, len(POINTS), dtype=torch.float64)])
    assert_equal_to_autograd(cell, given(cell, x, torch.zeros_like(x)))


@pytest.mark.parametrize("name", BINARY)
def test_rules_of_two_values(name: str) -> None:
    cell = Expression(BINARY[name])
    assert_equal_to_autograd(cell, given(cell, *grid()))


@pytest.mark.parametrize("name", SMOOTH)
def test_rules_over_rows(name: str) -> None:
    assert_equal_to_autograd(Expression(SMOOTH[name]), None, 1e-11)


def test_every_rule_is_held() -> None:
    seen = set()
    for expression in [*(lambda x, w, f=f: f(x) for f in UNARY.values()), *BINARY.values()]:
        seen |= {node.op for node in trace(Expression(expression)).nodes}
    for expression in SMOOTH.values():
        seen |= {node.op for node in trace(Expression(expression)).nodes}
    assert set(RULES) - seen == {"cat"}  # of heads, which only a step at known sizes has
    assert FLAT - seen == set()


def test_no_gradient_passes_a_comparison() -> None:
    back = derivative(trace(Expression(lambda x, w: torch.where(x > w, 1.0, 0.0))))
    assert back.outputs == ()


SAME: list[tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = [
    (torch.multiply, lambda x, w: x * w),
    (torch.divide, lambda x, w: x / w),
    (torch.true_divide, lambda x, w: x / w),
    (torch.subtract, lambda x, w: x - w),
    (torch.rsub, lambda x, w: w - x),
    (lambda x, w: 2 + x, lambda x, w: torch.add(2, x)),
    (lambda x, w: torch.negative(x), lambda x, w: -x),
    (lambda x, w: torch.arctan(x), lambda x, w: x.atan()),
    (lambda x, w: F.leaky_relu(x), lambda x, w: torch.nn.LeakyReLU()(x)),
    (lambda x, w: F.elu(x), lambda x, w: torch.nn.ELU()(x)),
    (lambda x, w: F.logsigmoid(x), lambda x, w: torch.nn.LogSigmoid()(x)),
    (lambda x, w: torch.softmax(x, 1), lambda x, w: x.softmax(-1)),
    (lambda x, w: np.float32(0.5) * x, lambda x, w: 0.5 * x),
    (lambda x, w: torch.where(x.greater(w), x, w), lambda x, w: torch.where(x > w, x, w)),
    (lambda x, w: torch.where(x.greater_equal(w), x, w), lambda x, w: torch.where(x >= w, x, w)),
    (lambda x, w: torch.where(x.less(w), x, w), lambda x, w: torch.where(x < w, x, w)),
    (lambda x, w: torch.where(x.less_equal(w), x, w), lambda x, w: torch.where(x <= w, x, w)),
    (lambda x, w: torch.where(x.not_equal(w), x, w), lambda x, w: torch.where(x != w, x, w)),
    (
        lambda x, w: torch.where((x > 0).logical_and(w > 0), x, w),
        lambda x, w: torch.where(torch.bitwise_and(x > 0, w > 0), x, w),
    ),
    (
        lambda x, w: torch.where((x > 0).logical_or(w > 0), x, w),
        lambda x, w: torch.where(torch.bitwise_or(x > 0, w > 0), x, w),
    ),
    (
        lambda x, w: torch.where((x > 0).logical_not(), x, w),
        lambda x, w: torch.where(torch.bitwise_not(x > 0), x, w),
    ),
]


@pytest.mark.parametrize("pair", SAME, ids=range(len(SAME)))
def test_other_names_give_the_same_graph(pair: Any) -> None:
    one, other = (trace(Expression(expression)) for expression in pair)
    assert one.unsupported == other.unsupported == ()
    assert one.key == other.key


def test_every_known_name_is_one_of_torchs() -> None:
    places = (torch, Tensor, F, torch.special)
    for name in OPERATIONS:
        plain = name.removeprefix("special_")
        words = (plain, f"__{plain}__", f"__{plain.removeprefix('r')}__", f"_{plain}")
        known = any(hasattr(place, word) for place in places for word in words)
        assert known or name in ("rdiv", "log_sigmoid", "linalg_vector_norm"), name
