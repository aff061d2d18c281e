"""Compiled code sees every change of its weights, however it was made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations

from throughtime import Recurrent, cells

Change = Callable[[Recurrent], None]


def _stepped(kind: type[torch.optim.Optimizer], **options: object) -> Change:
    def change(layer: Recurrent) -> None:
        torch.manual_seed(5)
        optimizer = kind(layer.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
        layer(torch.randn(3, 2, 3))[0].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return change


def _data(layer: Recurrent) -> None:
    for v in layer.parameters():
        v.data.mul_(1.5)


def _replaced_data(layer: Recurrent) -> None:
    for v in layer.parameters():
        v.data = v.data * 1.5


def _numpy(layer: Recurrent) -> None:
    for v in layer.parameters():
        v.detach().numpy()[...] *= 1.5


def _one_number(layer: Recurrent) -> None:
    next(layer.parameters()).data[-1, -1] += 1


def _loaded(layer: Recurrent) -> None:
    layer.load_state_dict({n: v * 1.5 for n, v in layer.state_dict().items()})


def _assigned(layer: Recurrent) -> None:
    state = {n: v * 1.5 for n, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def _without_gradient(layer: Recurrent) -> None:
    with torch.no_grad():
        for v in layer.parameters():
            v.add_(0.1)


def _in_inference_mode(layer: Recurrent) -> None:
    with torch.inference_mode():
        for v in layer.parameters():
            v.add_(0.1)


CHANGES: dict[str, Change] = {
    "SGD": _stepped(torch.optim.SGD), "SGD fused": _stepped(torch.optim.SGD, fused=True),
    "Adam": _stepped(torch.optim.Adam), "Adam fused": _stepped(torch.optim.Adam, fused=True),
    "AdamW fused": _stepped(torch.optim.AdamW, fused=True),
    "Adagrad fused": _stepped(torch.optim.Adagrad, fused=True), "data": _data,
    "replaced data": _replaced_data, "numpy": _numpy, "one number": _one_number,
    "loaded": _loaded, "assigned": _assigned, "without gradient": _without_gradient,
    "in inference mode": _in_inference_mode,
}  # fmt: skip


@contextmanager
def _recording() -> Iterator[None]:
    yield


MODES = {
    "recording": _recording, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode
}  # fmt: skip


def _outputs(layer: Recurrent, x: Tensor) -> list[Tensor]:
    y, state = layer(x)
    return [y, *(v for part in state for v in part)]


def _assert_as_new(layer: Recurrent, x: Tensor) -> None:
    """What it gives is what a layer gives that never was called before."""
    fresh = copy.deepcopy(layer)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    for a, b in zip(_outputs(layer, x), _outputs(fresh, x), strict=True):
        assert torch.equal(a, b)
    plain = copy.deepcopy(layer).double()
    plain.backend = "reference"
    for a, b in zip(_outputs(layer, x), _outputs(plain, x.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change: Change, mode: str) -> None:
    layer = Recurrent(cells.LSTM(), 3, 17, bidirectional=True, backend="cpu")
    x = torch.randn(4, 2, 3)
    for _ in range(2):
        with MODES[mode]():
            before = _outputs(layer, x)
            _outputs(layer, x)
        change(layer)
        with MODES[mode]():
            after = _outputs(layer, x)
            assert not torch.equal(before[0], after[0]), "the change must show"
            _assert_as_new(layer, x)


def test_another_precision_is_seen() -> None:
    layer = Recurrent(cells.GRU(), 3, 17, backend="cpu")
    x = torch.randn(4, 2, 3)
    single = layer(x)[0]
    double = layer.to(torch.float64)(x.double())[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, single.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.to(torch.float32)(x)[0], single)


def test_weight_norm_is_recomputed_and_trained() -> None:
    layer = Recurrent(cells.GRU(), 3, 5, backend="cpu", dtype=torch.float64)
    names = [n for n, _ in layer.named_parameters() if n.startswith("weight")]
    for name in names:
        parametrizations.weight_norm(layer, name)
    plain = copy.deepcopy(layer)
    plain.backend = "reference"
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for one in (layer, plain):
        optimizer = torch.optim.SGD(one.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            one(x)[0].square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(
        dict(layer.named_parameters()), dict(plain.named_parameters()), rtol=1e-10, atol=1e-12
    )


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = Recurrent(cells.LSTM(), 3, 5, backend="cpu")
        x = torch.randn(4, 2, 3)
        for _ in range(3):
            next(layer.parameters()).mul_(1.1)
            _assert_as_new(layer, x)
