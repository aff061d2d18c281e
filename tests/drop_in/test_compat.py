"""Subclasses of torch's own classes that are ours: isinstance holds and results are the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import throughtime
from tests.drop_in.pairs import KINDS, Case, run, tensors
from throughtime import compat

CELLS = ("RNNCell", "LSTMCell", "GRUCell")


class OfUsers(compat.LSTM):
    """A program's own subclass."""

    def forward(self, input: Any, hx: Any = None, **given: Any) -> Any:
        return super().forward(2 * input, hx, **given)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_they_are_torchs_and_ours(kind: str) -> None:
    layer = getattr(compat, kind)(3, 5)
    assert isinstance(layer, getattr(nn, kind))
    assert isinstance(layer, getattr(throughtime, kind))
    assert isinstance(layer, nn.RNNCellBase if kind in CELLS else nn.RNNBase)
    assert repr(layer) == repr(getattr(nn, kind)(3, 5))
    assert kind in CELLS or "torch.compile refuses it" in getattr(compat, kind).__doc__


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_a_plain_drop_in_becomes_one_in_place(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(getattr(throughtime, kind)(3, 5), nn.Linear(5, 2))
    layer, x = model[0], torch.randn(4, 3) if kind in CELLS else torch.randn(7, 4, 3)
    weights, before = list(model.parameters()), layer(x)
    compat.become_torchs(model)
    assert model[0] is layer and isinstance(layer, getattr(nn, kind))
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))
    pairs = zip(tensors(before), tensors(layer(x)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("form", ["batched", "alone", "packed, unsorted"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_torchs(kind: str, form: str, backend: str) -> None:
    case = Case(kind, form, True, {"num_layers": 2, "bidirectional": True})
    theirs, ours = case.build(nn), case.build(compat, backend=backend)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, hx = case.draw()
    d_results: list[torch.Tensor] = []
    expected = run(theirs, x, hx, d_results)
    torch.testing.assert_close(run(ours, x, hx, d_results), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_weights(kind: str) -> None:
    weights = []
    for module in (nn, compat):
        torch.manual_seed(2)
        weights.append(list(getattr(module, kind)(3, 5, 2).parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_moves(kind: str, again: Any) -> None:
    layer = getattr(compat, kind)(3, 5, 2)
    x = torch.randn(4, 2, 3)
    y = layer(x)[0]
    assert torch.equal(again(layer)(x)[0], y)
    assert torch.equal(layer.double().float()(x)[0], y)
    layer.weight_hh_l0 = nn.Parameter(torch.zeros_like(layer.weight_hh_l0))
    assert not torch.equal(layer(x)[0], y)
    layer.flatten_parameters()


def test_a_users_subclass_and_what_torch_does_not_offer() -> None:
    layer = OfUsers(3, 5, batch_first=True)
    x = torch.randn(2, 4, 3)
    lengths = torch.tensor([4, 0])
    y, (h, c) = layer(x, lengths=lengths)
    plain = throughtime.LSTM(3, 5, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    expected = plain(2 * x, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip((y, h, c), tensors(expected), strict=True))
    assert torch.equal(y[1], torch.zeros(4, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_the_compiler_refuses_instances_of_torchs_classes(kind: str) -> None:
    """The reason why the drop-ins are plain modules; when this fails, they need not be.

    torch 2.15 says so at the first thing that the layer asks of itself.
    """
    step = torch.compile(getattr(compat, kind)(3, 5), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM|DelayGraphBreak"):
        step(torch.randn(4, 2, 3))
    torch._dynamo.reset()
