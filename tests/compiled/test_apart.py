"""Cells that multiply by one matrix several times: told, and right wherever weights are kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.testing import assert_close

from throughtime import Cell, Recurrent, Stream
from throughtime.backends.cpu import operands
from throughtime.compiler.plan import make_plan

NEAR: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Echo(Cell):
    """What a gate's matrix made of the old state goes through it once more."""

    gates = ("g", "k")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        v = torch.tanh(a.g + U.g @ s.h)
        return (torch.tanh(U.k @ s.h + 0.5 * (U.g @ v)) * v,)


def _pair(H: int, **given: Any) -> tuple[Recurrent, Recurrent]:
    """A compiled layer, and the same with the reference."""
    layers = [
        Recurrent(Echo(), 3, H, dtype=torch.float64, backend=backend, **more)
        for backend, more in (("cpu", given), ("reference", {**given, "checkpoint_every": None}))
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    return layers[0], layers[1]


def _gradients(layer: Recurrent, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters())))


def test_each_product_is_told_by_itself() -> None:
    assert str(make_plan(Echo())).splitlines()[:5] == [
        "phase 1: products with x and the old state, then the pointwise part",
        "  t3 = W.g x + b + U.g h + b",
        "  t5 = U.k h + b",
        "phase 2: products with t4, then the pointwise part",
        "  t6 = U.g_2 t4 + b",
    ]


def test_a_stream_has_the_bits_of_the_layer() -> None:
    layer, _ = _pair(5)
    x = torch.randn(4, 1, 3).double()
    steps = Stream(layer.eval())
    assert steps.explain() == "compiled: a step of the whole model is one call"
    assert torch.equal(torch.stack([steps(v) for v in x]), layer(x)[0])


def test_weights_changed_between_calls_are_seen() -> None:
    layer, plain = _pair(150)
    x = torch.randn(4, 2, 3).double()
    with torch.no_grad():
        for _ in range(3):
            assert_close(layer(x)[0], plain(x)[0], **NEAR)
            for one in (layer, plain):
                one.weight_hh_l0.data.mul_(0.9)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_checkpoints_add_up_both_products(every: int) -> None:
    layer, plain = _pair(5, checkpoint_every=every)
    x = torch.randn(7, 2, 3).double()
    assert_close(_gradients(layer, x), _gradients(plain, x), **NEAR)


def test_checkpoints_set_weights_apart_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of them would wait with each segment."""
    made, set_apart = [], operands._copied_weights
    monkeypatch.setattr(
        operands, "_copied_weights", lambda *given: made.append(1) or set_apart(*given)
    )
    layer, plain = _pair(5, checkpoint_every=2, bidirectional=True)
    x = torch.randn(9, 2, 3).double()
    assert_close(_gradients(layer, x), _gradients(plain, x), **NEAR)
    assert len(made) == 2 * 2, "forward and backward of each direction"


def test_weights_in_columns_are_taken() -> None:
    layer, plain = _pair(5)
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.t().contiguous().t()
    x = torch.randn(4, 2, 3).double()
    assert_close(_gradients(layer, x), _gradients(plain, x), **NEAR)


def test_torch_compile_and_func() -> None:
    layer, plain = _pair(5)
    x = torch.randn(4, 2, 3).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(_gradients(compiled, x), _gradients(plain, x), **NEAR)
    weights = [{n: v.detach() for n, v in one.named_parameters()} for one in (layer, plain)]

    def loss(one: Recurrent, given: dict[str, Tensor]) -> Tensor:
        total: Tensor = functional_call(one, given, (x,))[0].square().sum()
        return total

    found = [
        grad(partial(loss, one))(given) for one, given in zip((layer, plain), weights, strict=True)
    ]
    assert_close(found[0], found[1], **NEAR)
