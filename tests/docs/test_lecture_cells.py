"""The statements of docs/lecture.md on gates, LSTM, GRU, directions, stacks and drop-ins."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import throughtime
from tests.tolerance import TOLERANCE
from throughtime import Cell, Recurrent, cells
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.translate.model import Translator

F64: dict[str, Any] = {"dtype": torch.float64}
both_backends = pytest.mark.parametrize("backend", ["torch", "reference"])


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, **F64)


class Switched(Cell):
    """h keeps its past where m is 0; m comes from outside, from any network."""

    gates = ("h",)
    state = ("h",)
    inputs = {"m": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        h = a.m * torch.tanh(a.h + U.h @ s.h) + (1 - a.m) * s.h
        return (h,)


def test_a_gate_may_come_from_another_network() -> None:
    """What another network says at each step gates this one, and is taught through it."""
    layer = Recurrent(Switched(), 2, 3, return_state=False, **F64)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Sigmoid()).double()
    x, other = randn(6, 2, 2), randn(6, 2, 5)
    layer(x, inputs={"m": network(other)}).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    shut = layer(x, inputs={"m": torch.zeros(6, 2, 3, **F64)})
    assert not shut.any()


def test_a_gate_may_come_from_the_networks_own_input_and_state() -> None:
    """The forget gate of an LSTM: f = sigmoid(W_f x_t + U_f h_{t-1} + b_f), times c_{t-1}."""
    layer = Recurrent(cells.LSTM(), 2, 3, **F64)
    x = randn(6, 2, 2)
    f = layer.gate("f")
    state = layer.trace(x)[0]
    h, c = state["h"][4, :, 0], state["c"][:, :, 0]
    gate = torch.sigmoid(x[5] @ f.weight_ih.T + h @ f.weight_hh.T + f.bias)
    i, g = (layer.gate(n) for n in "ig")
    taken = torch.sigmoid(x[5] @ i.weight_ih.T + h @ i.weight_hh.T + i.bias)
    new = torch.tanh(x[5] @ g.weight_ih.T + h @ g.weight_hh.T + g.bias)
    assert_close(c[5], gate * c[4] + taken * new)


def test_an_lstm_has_two_memories_three_gates_and_four_sets_of_weights() -> None:
    cell = cells.LSTM()
    assert cell.state_names == ("h", "c")
    layer = Recurrent(cell, 5, 7)
    assert [tuple(p.shape) for p in layer.parameters()] == [(28, 5), (28, 7), (28,), (28,)]
    sigmoids = [n for n in cell.gates if n != "g"]
    assert sigmoids == ["i", "f", "o"] and len(cell.gates) == 4


@both_backends
def test_an_lstm_with_open_forget_gate_keeps_its_long_memory(backend: str) -> None:
    """f = 1 and i = 0 (to the last bit): a thousand steps of noise later, c is the same bits."""
    layer = Recurrent(cells.LSTM(), 2, 3, backend=backend, **F64)
    layer.gate("f").bias, layer.gate("i").bias = 1e3, -1e3
    c = randn(1, 4, 3)
    _, ((_, last),) = layer(randn(1000, 4, 2), ((0 * c, c),))
    assert torch.equal(last, c)


def test_a_pair_of_sizes_is_ours_and_not_torchs() -> None:
    with pytest.raises(TypeError, match="hidden_size should be of type int"):
        nn.LSTM(5, (4, 9))
    layer = throughtime.LSTM(5, (4, 9), **F64)
    out, (h, c) = layer(randn(6, 2, 5))
    assert (out.shape[-1], h.shape[-1], c.shape[-1]) == (9, 9, 4)
    with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
        nn.LSTM(5, 4, proj_size=9)


def test_a_gru_has_one_memory_and_three_sets_of_weights() -> None:
    cell = cells.GRU()
    assert cell.state_names == ("h",)
    layer = Recurrent(cell, 5, 7)
    assert [tuple(p.shape) for p in layer.parameters()] == [(21, 5), (21, 7), (21,), (21,)]


@both_backends
def test_one_gate_of_a_gru_both_forgets_and_takes_in(backend: str) -> None:
    """z = 1 keeps h as it is, z = 0 replaces all of it: f and i of an LSTM, merged."""
    layer = Recurrent(cells.GRU(), 2, 3, backend=backend, **F64)
    h = randn(1, 4, 3)
    x = randn(50, 4, 2)
    layer.gate("z").bias = 1e3
    assert_close(layer(x, ((h,),))[1][0][0], h)
    layer.gate("z").bias = -1e3
    layer.gate("r").bias = -1e3
    n = layer.gate("n")
    assert_close(layer(x, ((h,),))[0][0], torch.tanh(x[0] @ n.weight_ih.T + n.bias_ih))


@both_backends
def test_two_directions_are_concatenated_or_added(backend: str) -> None:
    x = randn(6, 2, 5)
    found = {}
    for merge in ("concat", "sum"):
        torch.manual_seed(0)
        layer = Recurrent(
            cells.GRU(),
            5,
            3,
            bidirectional=True,
            merge=merge,
            return_state=False,
            backend=backend,
            **F64,
        )
        found[merge] = layer(x)
        assert layer.output_size == found[merge].shape[-1] == {"concat": 6, "sum": 3}[merge]
    forward, backward = found["concat"].split(3, -1)
    assert_close(found["sum"], forward + backward)


@both_backends
def test_two_directions_see_the_whole_sentence(backend: str) -> None:
    """At every step: what follows reaches an output by the backward direction alone."""
    x = randn(6, 1, 2).requires_grad_()
    for both in (False, True):
        layer = Recurrent(
            cells.GRU(), 2, 3, bidirectional=both, return_state=False, backend=backend, **F64
        )
        (gradient,) = torch.autograd.grad(layer(x)[2].sum(), x)
        assert gradient[:3].all()
        assert bool(gradient[3:].all()) is both and bool(gradient[3:].any()) is both


def test_a_stack_feeds_each_layer_the_outputs_of_the_one_below() -> None:
    """And `trace` gives every layer's states, which is what a probe of layers reads."""
    deep = Recurrent(cells.GRU(), 2, [5, 3], **F64)
    x = randn(6, 2, 2)
    lower, upper = (
        Recurrent(cells.GRU(), i, h, return_state=False, **F64) for i, h in ((2, 5), (5, 3))
    )
    for number, layer in enumerate((lower, upper)):
        layer.load_state_dict(
            {
                k.replace(f"l{number}", "l0"): v
                for k, v in deep.state_dict().items()
                if k.endswith(f"l{number}")
            }
        )
    first, second = (states["h"][:, :, 0] for states in deep.trace(x))
    assert_close(first, lower(x))
    assert_close(second, upper(lower(x)))
    assert_close(deep(x)[0], second)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_drop_in_takes_torchs_place(name: str) -> None:
    """Same arguments, same call, same names of weights; on torch's own kernel the same bits."""
    given: Any = {"num_layers": 2, "batch_first": True, "bidirectional": True}
    theirs = getattr(nn, name)(5, 7, **given)
    x = torch.randn(3, 6, 5)
    exact = {"rtol": 0, "atol": 0}
    for backend, close in (("auto", TOLERANCE[torch.float32]), ("torch", exact)):
        ours = getattr(throughtime, name)(5, 7, **given, backend=backend)
        ours.load_state_dict(theirs.state_dict())
        assert_close(ours(x), theirs(x), **close)
        assert re.sub("throughtime", "torch", repr(ours)) == repr(theirs)
    converted = throughtime.from_torch(nn.Sequential(theirs))
    assert_close(converted(x), theirs(x), **TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("directions", "merge", "width"), [(1, "concat", 4), (2, "concat", 8), (2, "sum", 4)]
)
def test_the_main_job_can_be_had_with_one_direction_or_two(
    directions: int, merge: str, width: int
) -> None:
    """Its encoder reads letters that follow, or does not; its outputs have the merged width."""
    recipe = Recipe(directions=directions, merge=merge, hidden=4, dropout=0.0)
    model = Translator(recipe, sources=5, targets=6).eval()
    letters = torch.randint(5, (7, 1))
    changed = letters.clone()
    changed[-1] = (letters[-1] + 1) % 5
    (first, _), _ = model.encode(letters)
    (second, _), _ = model.encode(changed)
    assert first.shape[-1] == width
    assert torch.equal(first[0], second[0]) is (directions == 1)
