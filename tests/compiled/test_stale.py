"""Weights are what they are at the call: whatever wrote into them, nothing stale is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.tolerance import TOLERANCE
from throughtime import Recurrent, cells


def _layer() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(cells.LSTM(), 5, 37, backend="cpu", return_state=False)


def _step(make: Callable[[Any], torch.optim.Optimizer]) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        layer(torch.ones(3, 2, 5)).sum().backward()
        make(layer.parameters()).step()

    return change


def _array(layer: Any) -> None:
    layer.weight_hh_l0.detach().numpy()[...] *= 2


def _load(layer: Any) -> None:
    layer.load_state_dict({n: v * 2 for n, v in layer.state_dict().items()})


def _data(layer: Any) -> None:
    layer.weight_ih_l0.data.mul_(2)
    layer.bias_hh_l0.data = layer.bias_hh_l0.data + 1


CHANGES: dict[str, Callable[[Any], None]] = {
    "sgd": _step(lambda p: torch.optim.SGD(p, 0.5)),
    "adam": _step(lambda p: torch.optim.Adam(p, 0.1)),
    "fused adam": _step(lambda p: torch.optim.Adam(p, 0.1, fused=True)),
    "fused sgd": _step(lambda p: torch.optim.SGD(p, 0.5, fused=True)),
    "data": _data,
    "NumPy": _array,
    "load_state_dict": _load,
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_weight_is_seen_at_the_next_call(
    change: Callable[[Any], None], grad: bool
) -> None:
    layer, x = _layer(), torch.randn(6, 3, 5)
    with torch.set_grad_enabled(grad):
        before = layer(x).detach().clone()
    change(layer)
    fresh = Recurrent(cells.LSTM(), 5, 37, backend="reference", return_state=False)
    fresh.load_state_dict(layer.state_dict())
    with torch.set_grad_enabled(grad):
        after = layer(x)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, fresh(x), **TOLERANCE[torch.float32])


def test_another_dtype_and_back() -> None:
    layer, x = _layer(), torch.randn(6, 3, 5)
    first = layer(x)
    double = layer.to(torch.float64)(x.double())
    torch.testing.assert_close(double, first.double(), **TOLERANCE[torch.float32])
    assert torch.equal(layer.to(torch.float32)(x), first)


def test_a_parametrised_weight_is_computed_anew() -> None:
    layer, x = _layer(), torch.randn(6, 3, 5)
    before = layer(x)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x), before, **TOLERANCE[torch.float32])
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original0.mul_(3)
    assert not torch.allclose(layer(x), before, atol=1e-3)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer, x = _layer(), torch.randn(6, 3, 5)
        first = layer(x).clone()
        layer.weight_hh_l0.mul_(2)
        assert not torch.allclose(layer(x), first, atol=1e-3)
