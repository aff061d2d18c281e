"""Every option without chance, value and gradient, against the formulas written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.layers.plain import (
    agree,
    build,
    elman,
    gru,
    gru_reset_before,
    lstm,
    plain,
    random,
)
from throughtime import Cell, Recurrent, cells
from throughtime.errors import OptionError

KINDS: dict[str, tuple[Cell, Any]] = {
    "elman": (cells.Elman(), elman),
    "lstm": (cells.LSTM(), lstm),
    "gru": (cells.GRU(), gru),
    "gru_reset_before": (cells.GRUResetBefore(), gru_reset_before),
}
RAGGED = [4, 0, 5, 2]
BACKENDS = ("reference", "auto")


def own_merge(forward: Tensor, backward: Tensor) -> Tensor:
    return torch.cosh(forward) - 2 * backward[..., :2].sum(-1, keepdim=True)


MERGES: dict[str, tuple[Any, Callable[[list[Tensor]], Tensor]]] = {
    "concat": ("concat", torch.cat),
    "sum": ("sum", lambda v: v[0] + v[1]),
    "mean": ("mean", lambda v: (v[0] + v[1]) / 2),
    "mul": ("mul", lambda v: v[0] * v[1]),
    "own": (own_merge, lambda v: own_merge(*v)),
}


def start(layer: Recurrent, rows: int) -> Any:
    return tuple(tuple(random(layer.directions, rows, w) for w in part) for part in layer.widths)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("merge", MERGES)
def test_merge(merge: str, backend: str) -> None:
    given, formula = MERGES[merge]
    layer = build(cells.GRU(), 3, [4, 5], bidirectional=True, merge=given, backend=backend)
    x = random(5, 4, 3)
    expected = plain(layer, gru, x, lengths=RAGGED, merge=formula)
    assert layer.output_size == expected[0].shape[-1]
    agree(layer(x, lengths=RAGGED), expected[:2], [x, *layer.parameters()])
    agree(layer(x), plain(layer, gru, x, merge=formula)[:2], [x, *layer.parameters()])


def test_merge_may_change_the_width() -> None:
    narrow = lambda f, b: (f * b).sum(-1, keepdim=True)  # noqa: E731
    layer = build(cells.Elman(), 2, [3, 4], bidirectional=True, merge=narrow)
    x = random(4, 3, 2)
    assert (layer.output_size, layer.weight_ih_l1.shape) == (1, (4, 1))
    agree(layer(x), plain(layer, elman, x, merge=lambda v: narrow(*v))[:2], [x])


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, f: Tensor, b: Tensor) -> Tensor:
        return self.weight * f + b


@pytest.mark.parametrize(
    ("merge", "text"),
    [
        ("max", r"merge must be concat, sum, mean, mul or a function of two tensors, got 'max'"),
        (None, r"merge must be .* got None"),
        (lambda f: f, r"merge must take two tensors \(\.\.\., 4\), .* it raised TypeError"),
        (lambda f, b: f @ b, r"merge must take two tensors .* it raised RuntimeError"),
        (lambda f, b: 1.0, r"merge must return \(\.\.\., width\) .* it returned float"),
        (lambda f, b: (f + b).sum(), r"for \(2, 3, 4\) it returned \(\)"),
        (lambda f, b: torch.stack((f, b)), r"it returned \(2, 2, 3, 4\)"),
        (Scale(), r"merge must be a function without tensors of its own, .* got Scale; use merge="),
    ],
)
def test_bad_merge(merge: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Recurrent(cells.LSTM(), 3, 4, bidirectional=True, merge=merge)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(k, "reference") for k in KINDS] + [(k, "torch") for k, (c, _) in KINDS.items()
                                         if c.torch_equivalent],
)  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_three_layers_two_directions(kind: str, bias: bool, backend: str) -> None:
    cell, step = KINDS[kind]
    layer = build(cell, 3, [4, 2, 3], bidirectional=True, bias=bias, backend=backend)
    assert any("bias" in n for n, _ in layer.named_parameters()) == bias
    x, state = random(5, 4, 3), start(layer, 4)
    leaves = [x, *(v for part in state for v in part), *layer.parameters()]
    agree(layer(x, state), plain(layer, step, x, state=state)[:2], leaves)
    expected = plain(layer, step, x, state=state, lengths=RAGGED)
    agree(layer(x, state, lengths=RAGGED), expected[:2], leaves)


@pytest.mark.parametrize("directions", [1, 2])
def test_residual(directions: int) -> None:
    layer = build(
        cells.LSTM(), 3, 4, num_layers=3, bidirectional=directions == 2, merge="sum", residual=True
    )
    x = random(5, 4, 3)
    expected = plain(
        layer, lstm, x, lengths=RAGGED, residual=True,
        merge=torch.cat if directions == 1 else MERGES["sum"][1],
    )  # fmt: skip
    agree(layer(x, lengths=RAGGED), expected[:2], [x, *layer.parameters()])


def test_residual_needs_one_width() -> None:
    with pytest.raises(OptionError, match="residual adds .* must give the same width, got 4, 5"):
        Recurrent(cells.GRU(), 3, [4, 5], residual=True)
    assert Recurrent(cells.GRU(), 3, [4], residual=True).output_size == 4


def test_learned_initial_state() -> None:
    layer = build(cells.LSTM(), 3, [4, 2], bidirectional=True, learn_initial=True)
    x, reset = random(5, 4, 3), torch.rand(5, 4) < 0.3
    reset[0, 1] = reset[4, 2] = True
    leaves = [x, *layer.parameters()]
    agree(layer(x), plain(layer, lstm, x)[:2], leaves)
    agree(layer(x, lengths=RAGGED), plain(layer, lstm, x, lengths=RAGGED)[:2], leaves)
    expected = plain(layer, lstm, x, lengths=RAGGED, reset=reset)
    agree(layer(x, lengths=RAGGED, reset=reset), expected[:2], leaves)
    agree(layer.initial_state(3), [
        [torch.stack([getattr(layer, f"initial_{n}_l{k}{end}").expand(3, -1)
                      for end in ("", "_reverse")]) for n in "hc"] for k in range(2)
    ], [p for n, p in layer.named_parameters() if "initial" in n])  # fmt: skip


def test_learned_initial_state_behind_a_given_state() -> None:
    layer = build(cells.GRU(), 3, 4, learn_initial=True)
    x, state = random(5, 3, 3), start(layer, 3)
    y, _ = layer(x, state)
    assert torch.autograd.grad(y.sum(), layer.initial_h_l0, allow_unused=True) == (None,)
    reset = torch.zeros(5, 3, dtype=torch.bool)
    reset[3, 1] = True
    leaves = [x, *state[0], *layer.parameters()]
    expected = plain(layer, gru, x, state=state, reset=reset)
    agree(layer(x, state, reset=reset), expected[:2], leaves)


def test_outputs_alone() -> None:
    layer = build(cells.GRU(), 3, 4, return_state=False, batch_first=True)
    x = random(3, 5, 3)
    agree(layer(x), plain(layer, gru, x.transpose(0, 1))[0].transpose(0, 1), [x])


def test_repr_says_what_was_asked_for() -> None:
    assert repr(Recurrent(cells.GRU(), 3, 4)) == "Recurrent(GRU(), 3, 4)"
    layer = Recurrent(
        cells.LSTMProjected(2), 3, [4, 5], bidirectional=True, merge="mul", bias=False,
        batch_first=True, return_state=False, backend="reference", dropout=0.5,
        zoneout={"h": 0.1}, dilation=[1, 2],
    )  # fmt: skip
    assert repr(layer) == (
        "Recurrent(LSTMProjected(proj_size=2), 3, (4, 5), bidirectional=True, merge='mul', "
        "bias=False, batch_first=True, return_state=False, backend='reference', dropout=0.5, "
        "zoneout={'h': 0.1}, dilation=(1, 2))"
    )
