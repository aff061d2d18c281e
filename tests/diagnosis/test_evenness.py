"""Evenness against .grad, a step of SGD by hand, and torch's cells in a loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime.diagnosis.observe.examined import ExaminedModel
from throughtime.diagnosis.quantities.evenness import evenness
from throughtime.errors import OptionError, ShapeError

T, B, H = 9, 4, 5
GATES = {"RNN": ["h"], "LSTM": ["i", "f", "g", "o"], "GRU": ["r", "z", "n"]}


class Net(nn.Module):
    """Two layers, and a read-out of the last output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = getattr(nn, kind)(3, H, 2)
        self.head = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0])
        return y


def _x() -> Tensor:
    return torch.rand(T, B, 3, generator=torch.Generator().manual_seed(3))


def _loss(y: Tensor) -> Tensor:
    return (y - 1).square().mean()


def _shares(net: nn.Module, moved: dict[str, Tensor], count: int) -> dict[tuple[str, int], float]:
    """||moved|| / ||theta|| of each parameter, those of the layers in `count` blocks of rows."""
    found = {}
    for name, p in net.named_parameters():
        blocks = count if name.startswith("rnn") else 1
        size = len(p) // blocks
        for i in range(blocks):
            rows = slice(i * size, (i + 1) * size)
            sizes = moved[name][rows].norm(), p[rows].detach().norm()
            found[name, i] = float(sizes[0] / sizes[1])
    return found


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_gradient_shares_are_those_of_grad(kind: str) -> None:
    net = Net(kind)
    _loss(net(_x())).backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    expected = _shares(net, grads, len(GATES[kind]))
    examined = ExaminedModel(net)
    found = evenness(examined, examined.run(_x(), _loss))
    assert found.kind == "gradient"
    gates = GATES[kind]
    own = {(s.parameter, gates.index(s.gate) if s.gate else 0): s.ratio for s in found.shares}
    assert own.keys() == expected.keys()
    assert [own[k] for k in expected] == pytest.approx([*expected.values()], rel=1e-4)
    places = {s.parameter: (s.name, s.layer, s.direction) for s in found.shares}
    assert places["rnn.weight_hh_l1"] == ("rnn", 1, 0)
    assert places["head.bias"] == ("", None, None)


def test_update_shares_are_those_of_a_step_by_hand() -> None:
    net = Net("GRU")
    before = copy.deepcopy(net)
    _loss(net(_x())).backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * (p.grad if p.grad is not None else 0)
    moved = {n: 0.1 * p.grad for n, p in net.named_parameters() if p.grad is not None}
    expected = _shares(before, moved, 3)
    examined = ExaminedModel(net)
    found = evenness(examined, examined.run(_x(), _loss), before.state_dict())
    assert found.kind == "update"
    own = [s.ratio for s in found.shares]
    assert own == pytest.approx([*expected.values()], rel=1e-3)


def _retained(net: Any, x: Tensor) -> list[Tensor]:
    """(T, B, H) of each layer: dL/dh_t by torch's cells in a loop."""
    inputs, states = [*x], []
    for layer in (0, 1):
        cell = nn.GRUCell(3 if layer == 0 else H, H)
        weights = {n.removesuffix(f"_l{layer}"): v for n, v in net.rnn.state_dict().items()
                   if n.endswith(f"_l{layer}")}  # fmt: skip
        cell.load_state_dict(weights)
        h, own = torch.zeros(B, H), []
        for v in inputs:
            h = cell(v, h)
            h.retain_grad()
            own.append(h)
        states.append(own)
        inputs = own
    _loss(net.head(torch.stack(inputs))).backward()
    return [torch.stack([h.grad for h in own if h.grad is not None]) for own in states]


def test_depth_and_neighbours_are_those_of_a_loop_with_retain_grad() -> None:
    net = Net("GRU")
    examined = ExaminedModel(net)
    found = evenness(examined, examined.run(_x(), _loss))
    d = _retained(net, _x())
    for layer, depth in enumerate(found.depth):
        assert (depth.name, depth.layer, depth.steps) == ("rnn", layer, (0, 4, 8))
        assert depth.norms == pytest.approx(
            [float(d[layer][t].norm()) for t in (0, 4, 8)], rel=1e-4
        )
    (pair,) = found.neighbours
    cosine = float((d[0] * d[1]).sum() / (d[0].norm() * d[1].norm()))
    assert (pair.layer, pair.cosine) == (0, pytest.approx(cosine, abs=1e-5))


def test_what_is_not_known_is_none() -> None:
    layer = nn.GRU(3, H)
    nn.init.zeros_(layer.get_parameter("bias_hh_l0"))
    examined = ExaminedModel(layer)
    found = evenness(examined, examined.run(_x(), _loss))
    ratios = {s.parameter: s.ratio for s in found.shares}
    assert ratios["bias_hh_l0"] is None and ratios["bias_ih_l0"] is not None
    assert found.neighbours == ()


def test_parameters_that_do_not_fit_are_refused() -> None:
    examined = ExaminedModel(nn.GRU(3, H))
    seen = examined.run(_x(), _loss)
    with pytest.raises(OptionError, match="before must hold every parameter that trains, it lacks"):
        evenness(examined, seen, {})
    with pytest.raises(ShapeError, match=r"weight_ih_l0 must have the shape \(15, 3\) before"):
        evenness(examined, seen, nn.GRU(2, H).state_dict())
    broken = {n: v * math.inf for n, v in nn.GRU(3, H).state_dict().items()}
    with pytest.raises(OptionError, match="update of parameter weight_ih_l0 is not finite"):
        evenness(examined, seen, broken)
