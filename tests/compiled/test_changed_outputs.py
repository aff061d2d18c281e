"""Outputs that are written over before backward: the gradient of what was computed, as in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import throughtime
from throughtime import Recurrent, cells
from throughtime.layers import Recurrent as Layer
from throughtime.scan import autograd

CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda y: y.mul_(0.5),
    "relu_": lambda y: y.relu_(),
    "masked_fill_": lambda y: y.masked_fill_(y > 0.1, 0.0),
    "some steps": lambda y: y[2:].mul_(3.0),
    "module": nn.ReLU(inplace=True),
}
every_change = pytest.mark.parametrize("change", CHANGES)


def gradients(layer: nn.Module, change: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
    y, h = layer(x)
    change(y)
    h = h[0] if isinstance(h, tuple) else h
    loss = y.square().sum() + h.sum()
    return list(torch.autograd.grad(loss, (x, *layer.parameters())))


@every_change
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_so_where_torch_does_not_give_what_is_saved_one_by_one(
    kind: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autograd, "SAVED_ONE_BY_ONE", False)  # as with torch 2.9
    test_a_change_of_the_output_trains_as_with_torch(kind, {}, change)


@every_change
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"batch_first": True}])
def test_a_change_of_the_output_trains_as_with_torch(
    kind: str, options: dict[str, Any], change: str
) -> None:
    # torch's LSTM of one direction raises; with two it has kernels that keep copies.
    options = {**options, "bidirectional": True, "dtype": torch.float64}
    judge = getattr(nn, kind)(3, 4, **options)
    layer = getattr(throughtime, kind)(3, 4, **options)
    layer.load_state_dict(judge.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    found, expected = (gradients(net, CHANGES[change], x) for net in (layer, judge))
    assert_close(found, expected)


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "ragged": ({"learn_initial": True}, {"lengths": [5, 0, 3]}),
    "masked": ({"recurrent_dropout": 0.3, "zoneout": 0.2}, {}),
    "checkpoints": ({"checkpoint_every": 2}, {}),
}


def trained(layer: Layer, x: Any, given: dict[str, Any], changes: bool) -> list[Tensor]:
    torch.manual_seed(3)  # of the masks
    y, _ = layer(x, **given)
    y = y if isinstance(y, Tensor) else y.data
    seen = y * 2
    if changes:
        y.zero_()
    return list(torch.autograd.grad(seen.square().sum(), list(layer.parameters())))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cell", [cells.GRU(), cells.LEM(), cells.LSTMProjected(2)], ids=str)
def test_a_change_leaves_the_bits_of_the_gradient(cell: throughtime.Cell, call: str) -> None:
    options, given = CALLS[call]
    layer = Recurrent(cell, 3, 4, bidirectional=True, **options)
    x = torch.randn(5, 3, 3)
    expected = trained(layer, x, given, changes=False)
    for found, one in zip(trained(layer, x, given, changes=True), expected, strict=True):
        assert torch.equal(found, one)


def test_the_same_of_a_packed_batch_and_of_every_state() -> None:
    layer = Recurrent(cells.LSTM(), 3, 4)
    x = pack_sequence([torch.randn(n, 3) for n in (4, 3, 1)])
    expected = trained(layer, x, {}, changes=False)
    for found, one in zip(trained(layer, x, {}, changes=True), expected, strict=True):
        assert torch.equal(found, one)
    steps = torch.randn(5, 2, 3)

    def by_trace(changes: bool) -> tuple[Tensor, ...]:
        (states,) = layer.trace(steps)
        seen = sum((v * 2).sum() for v in states.values())
        for v in states.values() if changes else ():
            v.zero_()
        return torch.autograd.grad(seen, list(layer.parameters()))

    for found, one in zip(by_trace(True), by_trace(False), strict=True):
        assert torch.equal(found, one)


def _hooks(layer: nn.Module, x: Tensor) -> Tensor:
    with saved_tensors_hooks(lambda v: v, lambda v: v):
        return layer(x)[0]


RUNS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda layer, x: layer(x)[0],
    "hooks": _hooks,
    "checkpoint": lambda layer, x: checkpoint(lambda v: layer(v)[0], x, use_reentrant=False),
}


@pytest.mark.parametrize("run", RUNS)
def test_changes_under_hooks_twice_over_and_with_a_graph(run: str) -> None:
    layer = throughtime.GRU(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def asked(changes: bool) -> list[Tensor]:
        y = RUNS[run](layer, x)
        seen = (y * 1).sin().sum()
        if changes:
            y.zero_()
        first = torch.autograd.grad(seen, x, retain_graph=True)[0]
        if run == "checkpoint":  # which keeps no graph to go through again
            return [first]
        (again,) = torch.autograd.grad(seen, x, create_graph=True)
        return [first, again, *torch.autograd.grad(again.square().sum(), [*layer.parameters()])]

    assert_close(asked(True), asked(False))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("inside", [True, False])
def test_a_change_below_the_compiler_and_of_what_it_gives(inside: bool) -> None:
    layer = throughtime.GRU(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    change = CHANGES["module"]
    expected = torch.autograd.grad(change(layer(x)[0]).square().sum(), x)
    whole = torch.nn.Sequential(layer, _First(), nn.ReLU(inplace=True))
    compiled = torch.compile(whole if inside else layer, backend="aot_eager", fullgraph=True)
    y = compiled(x) if inside else change(compiled(x)[0])
    assert_close(torch.autograd.grad(y.square().sum(), x), expected)


class _First(nn.Module):
    def forward(self, results: tuple[Tensor, Any]) -> Tensor:
        return results[0]


@pytest.mark.parametrize("what", ["x", "state", "weight"])
def test_a_change_of_what_was_given_still_raises(what: str) -> None:
    layer = throughtime.GRU(3, 4)
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    y = layer(x, h)[0]
    loss = y.sum()
    with torch.no_grad():
        {"x": x, "state": h, "weight": layer.weight_hh_l0}[what].mul_(2)
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = layer(x)[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
