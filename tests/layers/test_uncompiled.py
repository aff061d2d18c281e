"""A cell that no compiled code can carry is told once, with its line; a deep one is carried."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from throughtime import Cell, Recurrent
from throughtime.errors import BackendError


class Sorted(Cell):
    """Sorts its units, which has no rule."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h).sort(-1).values,)


def test_the_reference_is_told_once_a_cell_with_the_line() -> None:
    with pytest.warns(UserWarning, match=r"Sorted runs on the reference.*sort has no rule") as told:
        Recurrent(Sorted(), 3, 4)
    assert "sort(-1).values" in str(told[0].message) and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recurrent(Sorted(), 3, 5)
        Recurrent(Sorted(), 3, 4, backend="reference")
    layer = Recurrent(Sorted(), 3, 4, backend="cpu")
    with pytest.raises(BackendError, match="sort has no rule"):
        layer(torch.randn(2, 1, 3))


class Deep(Cell):
    """A chain of so many operations in one step.

    Args:
        links: of the chain.
    """

    gates = ("h",)
    state = ("h",)

    def __init__(self, links: int) -> None:
        self.links = links

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        h = a.h + U.h @ s.h
        for _ in range(self.links):
            h = 0.9 * torch.tanh(h) + 0.5 * s.h
        return (h,)


def test_a_step_of_a_thousand_operations_is_carried_and_differentiated() -> None:
    torch.manual_seed(2)
    layer = Recurrent(Deep(250), 3, 5, return_state=False, backend="cpu", dtype=torch.float64)
    x, found = torch.randn(2, 2, 3, dtype=torch.float64), []
    for backend in ("cpu", "reference"):
        layer.backend = backend
        y = layer(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), layer.parameters())))
    torch.testing.assert_close(*found)
