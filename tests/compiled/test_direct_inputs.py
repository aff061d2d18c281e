"""Direct inputs of compiled cells under every transform, and the order of sums over units."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from tests.compiled.fed import Decaying, Phased
from tests.compiled.uneven import Told
from throughtime import Cell, Recurrent
from throughtime.backends.cpu.gradients import sum_units

every_cell = pytest.mark.parametrize("cell", [Decaying(), Phased(), Told(4, 3)], ids=repr)
NEAR: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def _pair(cell: Cell) -> tuple[Recurrent, Recurrent]:
    """A compiled layer of two directions, and the same with the reference."""
    layer = Recurrent(cell, 3, 5, dtype=torch.float64, backend="cpu", bidirectional=True)
    plain = copy.deepcopy(layer)
    plain.backend = "reference"
    return layer, plain


def _inputs(cell: Cell, *rows: int) -> dict[str, Tensor]:
    return {n: torch.randn(*rows, cell.width(w, 5)).double() for n, w in cell.inputs.items()}


def _loss(layer: Recurrent, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    weights = {name: v.detach() for name, v in layer.named_parameters()}

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        y, _ = functional_call(layer, weights, (x,), {"inputs": inputs})
        return y.square().sum()

    return loss


@every_cell
def test_torch_func(cell: Cell) -> None:
    layer, plain = _pair(cell)
    x, inputs = torch.randn(4, 2, 3).double(), _inputs(cell, 4, 2)
    ours, theirs = _loss(layer, x), _loss(plain, x)
    assert_close(grad(ours)(inputs), grad(theirs)(inputs), **NEAR)
    several = {n: torch.stack((v, v + 1)) for n, v in inputs.items()}
    assert_close(vmap(grad(ours))(several), vmap(grad(theirs))(several), **NEAR)


@every_cell
def test_second_derivatives(cell: Cell) -> None:
    layer, plain = _pair(cell)
    x, grads = torch.randn(3, 2, 3).double(), []
    given = _inputs(cell, 3, 2)
    for one in (layer, plain):
        inputs = {n: v.clone().requires_grad_() for n, v in given.items()}
        total = one(x, inputs=inputs, lengths=torch.tensor([3, 1]))[0].square().sum()
        first = torch.autograd.grad(total, list(inputs.values()), create_graph=True)
        second = sum(v.square().sum() for v in first)
        grads.append(torch.autograd.grad(second, [*inputs.values(), *one.parameters()]))
    assert_close(grads[0], grads[1], **NEAR)


@every_cell
def test_compile_gives_gradients_into_inputs(cell: Cell) -> None:
    layer, plain = _pair(cell)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for T, B in ((4, 2), (6, 3)):
        x, given, grads = torch.randn(T, B, 3).double(), _inputs(cell, T, B), []
        for one in (compiled, plain):
            inputs = {n: v.clone().requires_grad_() for n, v in given.items()}
            total = one(x, inputs=inputs)[0].square().sum()
            grads.append(torch.autograd.grad(total, list(inputs.values())))
        assert_close(grads[0], grads[1], **NEAR)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 130, 1001])
def test_units_are_summed_by_halves(width: int) -> None:
    """Exact sums tell the error, which by halves is at most one rounding a halving."""
    line = torch.randn(3, width).double()
    found = sum_units(line)
    assert found.shape == (3, 1)
    for row, total in zip(line.tolist(), found[:, 0].tolist(), strict=True):
        exact = sum(map(Fraction, row))
        size = sum(abs(Fraction(v)) for v in row)
        halvings = math.ceil(math.log2(width)) if width > 1 else 0
        assert abs(Fraction(total) - exact) <= halvings * Fraction(2) ** -53 * size
    assert torch.equal(sum_units(line[1:2]), found[1:2])
