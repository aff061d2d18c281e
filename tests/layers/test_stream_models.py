"""Streams of models that raise, change, or make their weights anew at each call."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.layers.plain import agree, build, gru, plain, random
from throughtime import GRU, Readout, Recurrent, cells
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.stream import Stream


class Fragile(nn.Module):
    """Turns its input round, which no compiled step does, and raises when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise ZeroDivisionError
        return x.flip(-1)


def layer(I: int, H: int) -> Recurrent:
    return build(cells.GRU(), I, H, return_state=False)


def test_a_step_that_raises_is_no_step_of_any_layer() -> None:
    model = nn.Sequential(layer(3, 4), Fragile(), layer(4, 2))
    x = random(3, 1, 3).detach()
    stream, other = Stream(model), Stream(model)
    agree(stream(x[0]), other(x[0]))
    stream._model[1].broken = True
    with pytest.raises(ZeroDivisionError):
        stream(x[1])
    agree(stream.state, other.state)
    stream._model[1].broken = False
    agree([stream(v) for v in x[1:]], [other(v) for v in x[1:]])


def test_a_state_that_fits_one_layer_only_is_set_in_none() -> None:
    stream = Stream(nn.Sequential(layer(3, 4), layer(4, 2)))
    stream(random(1, 3).detach())
    before = stream.state
    first = ((torch.ones_like(before[0][0][0]),),)
    with pytest.raises(ShapeError, match=r"state h of layer 0 must be \(1, 1, 2\)"):
        stream.state = (first, first)
    agree(stream.state, before)


def test_refresh_takes_the_state_into_a_new_dtype() -> None:
    model = nn.Sequential(layer(3, 4), nn.Linear(4, 2, dtype=torch.float64)).float()
    x = torch.randn(5, 1, 3)
    stream = Stream(model)
    for v in x[:2]:
        stream(v)
    model.double()
    stream.refresh()
    found = torch.stack([stream(v) for v in x[2:].double()])
    whole = model(x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, whole[2:], rtol=1e-5, atol=1e-5)


def test_a_refresh_that_cannot_be_leaves_the_stream_as_it_was() -> None:
    model = nn.Sequential(layer(3, 4), nn.Linear(4, 2, dtype=torch.float64))
    x = random(4, 1, 3).detach()
    stream, other = Stream(model), Stream(copy.deepcopy(model))
    agree(stream(x[0]), other(x[0]))
    for changed, text in (
        (layer(3, 5), r"state h of layer 0 must be \(1, 1, 5\), got a tensor \(1, 1, 4\)"),
        (nn.Sequential(layer(3, 4), layer(4, 4)), "one entry for each of 2 recurrent layers"),
        (nn.Linear(3, 4), "needs a model with a recurrent layer"),
    ):
        model[0] = changed
        with pytest.raises((ShapeError, OptionError), match=text):
            stream.refresh()
    agree([stream(v) for v in x[1:]], [other(v) for v in x[1:]])


class DropConnect(nn.Module):
    """Writes a weight of its layer anew at each call, as it was done before parametrisations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = build(cells.GRU(), 3, 4)
        self.raw = nn.Parameter(self.layer.weight_hh_l0.detach().clone())
        del self.layer._parameters["weight_hh_l0"]
        self.layer.weight_hh_l0 = self.raw * 1

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5, self.training)
        y: Tensor = self.layer(x)[0]
        return y


def weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer(3, 4), "weight_hh_l0")


@pytest.mark.parametrize("make", [DropConnect, weight_normed])
def test_weights_that_are_made_anew_at_each_call(make: Any) -> None:
    model = make()
    x = random(4, 1, 3).detach()
    model(x).sum().backward()  # leaves a weight of the training mode, with a graph, behind
    stream = Stream(model)
    agree(torch.stack([stream(v) for v in x]), model.eval()(x))
    with torch.no_grad():
        for v in model.parameters():
            v.mul_(-0.5)
    stream.refresh()
    stream.reset()
    agree(torch.stack([stream(v) for v in x]), model(x))


def test_a_model_that_torch_cannot_copy_is_told() -> None:
    model = nn.Sequential(layer(3, 4))
    model.kept = [model[0].weight_hh_l0 * 2]
    with pytest.raises(OptionError, match="a stream runs a copy .* let the model hold no tensors"):
        Stream(model)


def test_names_of_weights_belong_to_the_layer() -> None:
    gru_layer = GRU(3, 4).double()
    stream = Stream(nn.Sequential(gru_layer, Readout(network=Fragile())))
    stream._model[0].weight_ih_l0 = nn.Parameter(torch.zeros(12, 3, dtype=torch.float64))
    assert not stream._model[0].layer.weight_ih_l0.any()
    x = random(1, 3).detach()
    with torch.no_grad():
        gru_layer.weight_ih_l0.zero_()
    agree(stream(x), plain(gru_layer, gru, x.unsqueeze(0))[0][0].flip(-1))
