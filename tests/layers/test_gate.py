"""gate(name): views of the right rows, whatever gates the equations leave out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.layers.plain import agree, build, random
from throughtime import Cell, cells
from throughtime.errors import OptionError


class Sparse(Cell):
    """Four gates of which the equations read W of two and U of two others."""

    gates = ("both", "input", "memory", "none")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.both + U.both @ s.h + a.input * (U.memory @ s.h)),)


def test_rows_by_name() -> None:
    layer = build(cells.LSTM(), 3, [4, 2], bidirectional=True)
    for k, H in enumerate((4, 2)):
        for reverse, end in ((False, ""), (True, "_reverse")):
            for at, name in enumerate("ifgo"):
                gate = layer.gate(name, layer=k, reverse=reverse)
                rows = slice(at * H, (at + 1) * H)
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    expected = getattr(layer, f"{part}_l{k}{end}")[rows]
                    assert torch.equal(getattr(gate, part), expected), (name, part)
                both = getattr(layer, f"bias_ih_l{k}{end}") + getattr(layer, f"bias_hh_l{k}{end}")
                assert torch.equal(gate.bias, both[rows])


def test_rows_of_gates_that_are_read_in_part() -> None:
    layer = build(Sparse(), 3, 2)
    assert layer.weight_ih_l0.shape == (4, 3) and layer.weight_hh_l0.shape == (4, 2)
    assert torch.equal(layer.gate("input").weight_ih, layer.weight_ih_l0[2:])
    assert torch.equal(layer.gate("memory").weight_hh, layer.weight_hh_l0[2:])
    assert torch.equal(layer.gate("memory").bias, layer.bias_hh_l0[2:])
    assert torch.equal(layer.gate("input").bias, layer.bias_ih_l0[2:])
    assert layer.gate("input").weight_hh is None and layer.gate("memory").weight_ih is None
    with pytest.raises(OptionError, match="^gate none has no bias; the equations never read it$"):
        _ = layer.gate("none").bias


def test_setting_the_bias() -> None:
    layer = build(cells.LSTM(), 3, 4, bidirectional=True)
    before = {n: v.detach().clone() for n, v in layer.named_parameters()}
    layer.gate("f", reverse=True).bias = 1.5
    assert torch.equal(layer.gate("f", reverse=True).bias, torch.full((4,), 1.5).double())
    layer.gate("o").bias = torch.arange(4)
    assert layer.gate("o").bias.tolist() == [0, 1, 2, 3]
    changed = {"bias_ih_l0": slice(12, 16), "bias_hh_l0": slice(12, 16),
               "bias_ih_l0_reverse": slice(4, 8), "bias_hh_l0_reverse": slice(4, 8)}  # fmt: skip
    for name, value in layer.named_parameters():
        same = value == before[name]
        if name in changed:
            assert not same[changed[name]].all()
            same[changed[name]] = True
        assert same.all(), name


def test_writing_through_a_view_changes_the_layer() -> None:
    layer, x = build(cells.GRU(), 3, 4), random(5, 2, 3)
    with torch.no_grad():
        layer.gate("z").weight_ih.zero_()
        layer.gate("z").weight_hh.zero_()
    layer.gate("z").bias = 60.0  # z = 1: the state never changes
    state = ((random(1, 2, 4),),)
    y, _ = layer(x, state)
    agree(y, state[0][0].expand(5, 2, 4))


def test_a_gate_has_a_gradient() -> None:
    layer = build(cells.GRU(), 3, 4)
    layer.gate("n").weight_hh.square().sum().backward()
    expected = torch.zeros(12, 4, dtype=torch.float64)
    expected[8:] = 2 * layer.weight_hh_l0[8:].detach()
    assert torch.equal(layer.weight_hh_l0.grad, expected)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"name": "c"}, "^gate must be one of i, f, g, o, got 'c'$"),
        ({"name": "f", "layer": 2}, "^layer must be from 0 to 1, got 2$"),
        ({"name": "f", "layer": -1}, "^layer must be from 0 to 1, got -1$"),
        ({"name": "f", "layer": "a"}, "^layer must be from 0 to 1, got 'a'$"),
        ({"name": "f", "reverse": True}, "^reverse is for layers of two directions, this one"),
    ],
)
def test_bad_gate(given: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        build(cells.LSTM(), 3, 4, num_layers=2).gate(**given)


def test_no_bias_and_a_wrong_bias() -> None:
    without = build(cells.LSTM(), 3, 4, bias=False).gate("f")
    assert without.bias_ih is None and without.bias_hh is None
    with pytest.raises(OptionError, match="^gate f has no bias; build the layer with bias=True$"):
        without.bias = 1.0
    gate = build(cells.LSTM(), 3, 4).gate("f")
    with pytest.raises(ValueError, match=r"bias of gate f must be a number or \(4,\), got \(3,\)"):
        gate.bias = torch.ones(3)


def test_a_bias_that_would_be_written_in_vain_is_told() -> None:
    layer = build(cells.LSTM(), 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(
            build(cells.GRU(), 3, 4, bidirectional=True), "bias_ih_l0_reverse"
        )
    nn.utils.parametrizations.weight_norm(layer, "bias_hh_l0")
    for gate, name in ((layer.gate("f"), "bias_hh_l0"), (old.gate("z", 0, True), "bias_ih_l0_rev")):
        before = gate.bias.detach().clone()
        with pytest.raises(OptionError, match=f"^{name}.* is parametrised, so writing into it has"):
            gate.bias = 1.0
        assert torch.equal(gate.bias, before)
    other = build(cells.LSTM(), 3, 4)
    nn.utils.parametrizations.weight_norm(other, "weight_hh_l0")
    other.gate("f").bias = 2.0  # the biases themselves are parameters
    assert torch.equal(other.gate("f").bias, torch.full((4,), 2.0, dtype=torch.float64))
