"""Where a network starts: the drawn numbers, and how far back the gradient then reaches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import throughtime
from tests.cells.table import CELLS
from throughtime import Cell, Recurrent, cells, initialise
from throughtime.errors import CellError, OptionError

GATED = [cell for cell in CELLS if cell.keeps]
H = 300


def _keeping(cell: Cell, **recipe: Any) -> Tensor:
    """The share of the old state that each unit keeps a step when its gates see only biases."""
    layer = initialise(Recurrent(cell, 2, H, dtype=torch.float64), **recipe)
    assert isinstance(layer, Recurrent)
    weights, keeping = layer.weights(0, 0), []
    for name, sign in cell.keeps.items():
        bias = weights[name] if name in cell.vectors else layer.gate(name).bias
        keeping.append(torch.sigmoid(sign * bias.detach()))
    assert all(torch.equal(keeping[0], other) for other in keeping), "one time scale a unit"
    return keeping[0]


@pytest.mark.parametrize("cell", GATED, ids=repr)
def test_the_declared_gate_keeps_the_state(cell: Cell) -> None:
    """Of a change of the state, all is left after 50 steps with the gate open, none when shut."""
    if isinstance(cell, cells.SLSTM):
        pytest.skip("its memory is c times exp of m: tests/cells/test_new_cells.py")
    left = []
    for bias in (40.0, -40.0):
        layer = initialise(Recurrent(cell, 2, 4, dtype=torch.float64), forget_bias=bias)
        with torch.no_grad():
            layer.weight_ih_l0.zero_()
            layer.weight_hh_l0.zero_()
        x = torch.zeros(50 if bias > 0 else 1, 1, 2, dtype=torch.float64)
        state = tuple(torch.rand(1, 1, w, dtype=torch.float64) for w in cell.widths(4))
        inputs = {n: torch.zeros_like(x[..., :1]) for n in cell.inputs} or None
        states = [tuple(scale * v for v in state) for scale in (1, 2)]
        last = [layer(x, (s,), inputs=inputs)[1][0][-1] for s in states]
        left.append((last[1] - last[0]) / state[-1])
    assert_close(left[0], torch.ones_like(left[0]), rtol=1e-9, atol=0)
    assert_close(left[1], torch.zeros_like(left[1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", GATED, ids=repr)
def test_time_scales_are_log_uniform(cell: Cell) -> None:
    keeping = _keeping(cell, timescales=(2, 500))
    tau = 1 / (1 - keeping)
    assert tau.min() >= 2 - 1e-9
    assert tau.max() <= 500 + 1e-6
    place = (tau.log() - math.log(2)) / math.log(250)
    edges = torch.linspace(0, 1, 6, dtype=torch.float64)
    share = torch.histogram(place, edges).hist / H
    assert_close(share, torch.full_like(share, 0.2), atol=0.08, rtol=0)


@pytest.mark.parametrize("cell", GATED, ids=repr)
def test_chrono_draws_as_published(cell: Cell) -> None:
    keeping = _keeping(cell, chrono=200)
    u = (keeping / (1 - keeping)).sort().values
    assert 1 <= u[0] < u[-1] <= 199
    even = torch.linspace(1, 199, H, dtype=torch.float64)
    assert_close(u, even, atol=20.0, rtol=0)


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNNCell"])
def test_single_steps_start_like_layers(kind: str) -> None:
    step, layer = (getattr(throughtime, name)(2, 5) for name in (kind, kind.removesuffix("Cell")))
    recipes: list[dict[str, Any]] = [{"recurrence": "torch"}, {"recurrence": "identity"}]
    if kind != "RNNCell":
        recipes.append({"recurrence": "orthogonal", "timescales": (2, 50)})
    for recipe in recipes:
        for module in (step, nn.Sequential(layer)):
            torch.manual_seed(4)
            assert initialise(module, **recipe) is module
        for name, value in step.named_parameters():
            assert torch.equal(value, getattr(layer, f"{name}_l0")), (recipe, name)


@pytest.mark.parametrize(("recipe", "share"), [("chrono", 1.0), ("timescales", 0.75)])
def test_what_writes_gets_the_opposite_bias_or_three_quarters(recipe: str, share: float) -> None:
    layer = Recurrent(cells.LSTM(), 2, 5, num_layers=2, bidirectional=True)
    initialise(layer, **{recipe: 90 if recipe == "chrono" else (3, 90)})
    for number in range(2):
        for reverse in (False, True):
            kept = layer.gate("f", number, reverse).bias
            assert_close(layer.gate("i", number, reverse).bias, -share * kept)
            assert kept.unique().numel() == 5
            for other in "go":
                assert bool(layer.gate(other, number, reverse).bias.any()) == (recipe == "chrono")
    before = layer.gate("i").bias.clone()
    initialise(layer, forget_bias=1.0)
    assert_close(layer.gate("f", 1, True).bias, torch.ones(5))
    assert_close(layer.gate("i").bias, before)


def test_every_gate_is_orthogonal_by_itself_or_the_identity() -> None:
    layer = Recurrent(cells.GRU(), 3, 5, num_layers=2, bidirectional=True, dtype=torch.float64)
    initialise(layer, "orthogonal", gain=1.5)
    for d in range(2):
        for gate in ("r", "z", "n"):
            U = layer.gate(gate, 1, bool(d)).weight_hh
            assert U is not None
            assert_close(U @ U.T, 2.25 * torch.eye(5, dtype=torch.float64))
            assert not layer.gate(gate, 1, bool(d)).bias.any()
    rnn = Recurrent(cells.Elman("relu"), 3, 50)
    initialise(rnn, "identity")
    assert torch.equal(rnn.weight_hh_l0, torch.eye(50))
    assert 5e-4 < float(rnn.weight_ih_l0.detach().std()) < 2e-3
    assert not rnn.bias_ih_l0.any()
    assert not rnn.bias_hh_l0.any()


def test_torchs_start_is_the_layers_own() -> None:
    layer, other = Recurrent(cells.LSTM(), 3, 5), Recurrent(cells.LSTM(), 3, 5)
    torch.manual_seed(5)
    layer.reset_parameters()
    torch.manual_seed(5)
    initialise(nn.Sequential(other), "torch")
    assert_close(dict(other.named_parameters()), dict(layer.named_parameters()), rtol=0, atol=0)


def _reach(layer: Recurrent, lag: int = 199) -> float:
    """log10 of ||dL/ds_{T-k}|| / ||dL/ds_T|| at k = lag, by autograd over single steps."""
    x = torch.rand(200, 16, 2, dtype=torch.float64)
    state = layer.initial_state(16)
    states = []
    for v in x:
        _, state = layer(v.unsqueeze(0), state)
        state = tuple(tuple(s.requires_grad_() for s in part) for part in state)
        states.append(state[0])
    loss = (states[-1][0] * torch.randn(64, dtype=torch.float64)).sum()
    flat = [*states[-1], *states[-1 - lag]]
    gradient = torch.autograd.grad(loss, flat, materialize_grads=True)
    count = len(gradient) // 2
    norms = [
        torch.cat([v.flatten() for v in g]).norm() for g in (gradient[:count], gradient[count:])
    ]
    return math.log10(norms[1] / norms[0])


@pytest.mark.parametrize(
    ("cell", "recurrence", "recipe", "least", "most"),
    [
        (cells.LSTM(), None, {"chrono": 200}, -1.5, 0.5),
        (cells.GRU(), None, {"chrono": 200}, -1.5, 0.5),
        (cells.LSTM(), None, {"timescales": (2, 600)}, -1.5, 0.5),
        (cells.LSTM(), "orthogonal", {"timescales": (2, 600)}, -1.5, 0.5),
        (cells.GRU(), "orthogonal", {"timescales": (2, 600)}, -1.5, 0.5),
        (cells.Elman(), "orthogonal", {}, -6.0, 0.5),
        (cells.Elman("relu"), "identity", {}, -0.5, 0.5),
        (cells.LSTM(), "torch", {}, -60.0, -20.0),
        (cells.GRU(), "torch", {}, -60.0, -20.0),
    ],
    ids=lambda v: str(v),
)
def test_how_far_the_gradient_reaches_at_birth(
    cell: Cell, recurrence: Any, recipe: dict[str, Any], least: float, most: float
) -> None:
    layer = Recurrent(cell, 2, 64, dtype=torch.float64)
    initialise(layer, recurrence, **recipe)
    assert least <= _reach(layer) <= most


def test_a_model_is_started_in_place_and_drop_ins_too() -> None:
    model = nn.ModuleDict({"a": throughtime.LSTM(2, 3), "b": Recurrent(cells.MGU(), 3, 4)})
    assert initialise(model, forget_bias=2.0) is model
    assert_close(model["a"].gate("f").bias, torch.full((3,), 2.0))
    assert_close(model["b"].gate("f").bias, torch.full((4,), -2.0))


class WrongKeeper(cells.GRU):
    keeps = {"k": 1}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: initialise(nn.Linear(2, 2)), "needs a model with a recurrent layer of through"),
        (lambda: _gru("random"), "recurrence must be torch, orthogonal, identity or None, got 'ra"),
        (lambda: _gru(forget_bias=1, chrono=9), "set the same biases; give one of them"),
        (lambda: _gru(chrono=2), "chrono must be a number of steps above 2, got 2"),
        (lambda: _gru(timescales=(1, 5)), "with 1 < lo <= hi, got .1, 5."),
        (lambda: _gru(timescales=(6, 5)), "with 1 < lo <= hi, got .6, 5."),
        (
            lambda: initialise(Recurrent(cells.Elman(), 2, 3), forget_bias=1),
            "Elman has no gate that keeps its state, so no bias sets its time scale; start it ort",
        ),
        (
            lambda: initialise(Recurrent(cells.IndRNN(), 2, 3), "identity"),
            "IndRNN has no recurrent matrix to make identity",
        ),
        (
            lambda: initialise(Recurrent(cells.GRU(), 2, 3, bias=False), chrono=9),
            "a start of the gates' biases needs them; build GRU with bias=True",
        ),
        (
            lambda: _parametrised(),
            "weight_hh_l0 .* is parametrised, so writing into it has no effect",
        ),
        (lambda: _gru(timescales=(6,)), "with 1 < lo <= hi, got .6,."),
        (lambda: _gru(timescales=9), "with 1 < lo <= hi, got 9"),
        (lambda: _gru(timescales=(2, math.inf)), "timescales must be a finite number, got inf"),
        (lambda: _gru(chrono=math.inf), "chrono must be a finite number, got inf"),
        (lambda: _gru(chrono=math.nan), "chrono must be a finite number, got nan"),
        (lambda: _gru(forget_bias=math.nan), "forget_bias must be a finite number, got nan"),
        (lambda: _gru(forget_bias=True), "forget_bias must be a finite number, got True"),
        (lambda: _gru("orthogonal", gain=math.inf), "gain must be a finite number, got inf"),
    ],
)
def test_what_cannot_be_started_is_told(make: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()


def _gru(*recurrence: Any, **recipe: Any) -> None:
    initialise(Recurrent(cells.GRU(), 2, 3), *recurrence, **recipe)


def _parametrised() -> None:
    layer = Recurrent(cells.GRU(), 2, 3)
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    initialise(layer, "orthogonal")


def test_a_wrong_declaration_is_told() -> None:
    with pytest.raises(CellError, match="keeps and writes must map a gate or vector to 1 or -1"):
        WrongKeeper()
