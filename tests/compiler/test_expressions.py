"""Random expressions: graph and derivative equal autograd through the same expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.interpret import Given, assert_equal_to_autograd
from throughtime.cells import Cell

Expression = Callable[[list[Any]], Any]

ONE = (
    torch.tanh, torch.sigmoid, F.softplus, torch.relu, F.silu, F.elu, F.hardtanh, torch.sin,
    torch.cos, torch.abs, torch.square, lambda x: -x, lambda x: 1 - x, lambda x: x / (1 + x * x),
    lambda x: torch.sqrt(1 + x * x), lambda x: torch.rsqrt(0.5 + x * x), lambda x: x.clamp(-1, 0.5),
    lambda x: torch.exp(-x * x), lambda x: torch.log1p(x.abs()), lambda x: torch.tanh(x) ** 3,
    lambda x: x - x.mean(-1, keepdim=True), lambda x: F.layer_norm(x, x.shape[-1:], eps=0.1),
    lambda x: torch.softmax(x, -1), lambda x: x * torch.ones_like(x),
)  # fmt: skip
TWO = (
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, lambda x, y: x / (1 + y * y),
    lambda x, y: torch.where(x > y, x * y, y), lambda x, y: torch.lerp(x, y, 0.3),
    lambda x, y: torch.where((x <= 0) | (y > 0), torch.tanh(x), y), lambda x, y: x * x.detach() + y,
)  # fmt: skip


class Composed(Cell):
    """A step of two states from expressions of all that it is given."""

    gates = ("g", "k")
    state = ("h", "c")
    vectors = {"u": 1.0}
    inputs = {"gap": 1}

    def __init__(self, new_h: Expression, new_c: Expression) -> None:
        self.new_h, self.new_c = new_h, new_c

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        given = [a.g, a.k + U.k @ s.h, s.h, s.c, p.u * s.c, a.gap + s.h, 0.5 * s.h]
        h = self.new_h(given)
        c = self.new_c([*given, h, U.g @ torch.tanh(h)])
        return h, c


def expressions(leaves: int) -> st.SearchStrategy[Expression]:
    leaf = st.integers(0, leaves - 1).map(lambda i: lambda given: given[i])
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(ONE), inner).map(
                lambda t: lambda given: t[0](t[1](given)),
            ),
            st.tuples(st.sampled_from(TWO), inner, inner).map(
                lambda t: lambda given: t[0](t[1](given), t[2](given)),
            ),
        ),
        max_leaves=12,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions(7), expressions(9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_random_expressions(h: Expression, c: Expression, H: int, B: int, seed: int) -> None:
    cell = Composed(h, c)
    generator = torch.Generator().manual_seed(seed)
    assert_equal_to_autograd(cell, Given(cell, H, B, generator), tolerance=1e-8)
