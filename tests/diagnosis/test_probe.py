"""Probes of layers whose knowledge is known, and a regression fitted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from throughtime import LSTM, Recurrent, cells
from throughtime.diagnosis.quantities.probe import probes, softmax_regression
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch

T, B = 30, 24


def _signs() -> Tensor:
    """(T, B), random signs."""
    return torch.randint(0, 2, (T, B), generator=torch.Generator().manual_seed(1)).double() * 2 - 1


def _shifting(hidden: list[int]) -> Recurrent:
    """Layers that shift: each holds as many steps as it has units, the next one those before."""
    layer = Recurrent(cells.Elman("identity"), 1, hidden, bias=False, dtype=torch.float64)
    with torch.no_grad():
        for number, n in enumerate(hidden):
            weights = layer.weights(number, 0)
            weights["weight_hh"].copy_(torch.diag(torch.ones(n - 1), -1))
            weights["weight_ih"].zero_()[0, -1] = 1
    return layer


def _labels(signs: Tensor, k: int) -> Tensor:
    """Whether the sign k steps ago was positive; -1 before there was one."""
    labels = torch.full((T, B), -1)
    labels[k:] = (signs[: T - k] > 0).long()
    return labels


@pytest.mark.parametrize(
    ("k", "knows"), [(0, (True, False)), (2, (True, True)), (4, (False, True))]
)
def test_each_layer_knows_what_it_holds(k: int, knows: tuple[bool, bool]) -> None:
    """The first holds the signs of lags 0 to 2, the second those of 2 to 4."""
    signs = _signs()
    found = probes(_shifting([3, 3]), Batch(signs.unsqueeze(-1)), _labels(signs, k))
    for probe, known in zip(found, knows, strict=True):
        assert probe.classes == 2
        assert probe.held_out_count == (T - k) * B // 2
        assert probe.accuracy == 1 if known else probe.accuracy < 0.62
        assert probe.control_accuracy < 0.62
        assert probe.selectivity == probe.accuracy - probe.control_accuracy


def test_what_is_memorised_is_not_selective() -> None:
    """Labels by kind: with the kind at hand, true and random ones are said equally well."""
    draw = torch.Generator().manual_seed(2)
    types = torch.randint(0, 12, (T, B), generator=draw)
    layer = Recurrent(cells.Elman("identity"), 12, 12, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").zero_()
        layer.get_parameter("weight_ih_l0").copy_(torch.eye(12))
    x = torch.nn.functional.one_hot(types, 12).double()
    (found,) = probes(layer, Batch(x), types % 3, types=types)
    assert (found.classes, found.accuracy, found.control_accuracy) == (3, 1, 1)
    assert found.selectivity == 0
    (alone,) = probes(layer, Batch(x), types % 3)
    assert alone.selectivity > 0.5


def test_final_states_of_both_directions_and_rows_of_their_own_lengths() -> None:
    """Two directions hold a row's last and its first sign, wherever the row ends."""
    layer = Recurrent(
        cells.Elman("identity"), 1, 1, bias=False, bidirectional=True, dtype=torch.float64
    )
    with torch.no_grad():
        for d in (0, 1):
            layer.weights(0, d)["weight_hh"].zero_()
            layer.weights(0, d)["weight_ih"].fill_(1)
    signs, lengths = _signs(), torch.arange(B) + 2
    batch = Batch(signs.unsqueeze(-1), lengths=lengths)
    for labels in (signs[0], signs[lengths - 1, torch.arange(B)]):
        (found,) = probes(layer, batch, (labels > 0).long())
        assert (found.accuracy, found.held_out_count) == (1, B // 2)
    (found,) = probes(layer, batch, (signs > 0).long())
    assert found.accuracy == 1
    assert found.held_out_count < T * B / 2


def test_the_regression_is_that_of_plain_descent() -> None:
    """The gradient written out: F^T (p - y) / n + decay w, followed downhill to its end."""
    draw = torch.Generator().manual_seed(4)
    f = torch.randn(40, 3, dtype=torch.float64, generator=draw)
    labels = torch.randint(0, 3, (40,), generator=draw)
    ones = torch.cat((f, torch.ones(40, 1, dtype=torch.float64)), 1)
    w, keep = torch.zeros(4, 3, dtype=torch.float64), torch.tensor([[1.0]] * 3 + [[0.0]])
    for _ in range(8000):
        p = (ones @ w).exp()
        p = p / p.sum(1, keepdim=True)
        p[torch.arange(40), labels] -= 1
        w = w - 0.5 * (ones.T @ p / 40 + 1e-3 * keep * w)
    found = softmax_regression(f, labels, 3)
    assert torch.allclose(found[:-1], w[:-1], atol=1e-3)
    said = (f @ found[:-1] + found[-1]).softmax(1)
    assert torch.allclose(said, (ones @ w).softmax(1), atol=1e-3)


def test_the_layer_is_left_as_it_was_and_a_seed_repeats() -> None:
    layer, signs = LSTM(1, 6, num_layers=2, dropout=0.5), _signs()
    batch, labels = Batch(signs.unsqueeze(-1).float()), (signs > 0).long()
    assert probes(layer, batch, labels) == probes(layer, batch, labels)
    assert layer.training


@pytest.mark.parametrize(
    ("rows", "labels", "kind", "text"),
    [
        (4, torch.zeros(3, 4).long(), OptionError, "two different labels among the rows it is fit"),
        (4, torch.full((4,), -1), OptionError, "there are no labels; give integers from 0"),
        (4, torch.zeros(5).long(), ShapeError, r"labels must be \(3, 4\) or \(4,\), got \(5,\)"),
        (1, torch.zeros(1).long(), ShapeError, "at least 2 rows, one to hold out, got 1"),
        (0, torch.zeros(0).long(), ShapeError, "at least 2 rows, one to hold out, got 0"),
    ],
)
def test_what_cannot_be_probed_is_refused(rows: int, labels: Tensor, kind: Any, text: str) -> None:
    layer = Recurrent(cells.GRU(), 1, 2)
    with pytest.raises(kind, match=text):
        probes(layer, Batch(torch.randn(3, rows, 1)), labels)


def test_types_of_another_shape_and_states_that_are_not_finite_are_refused() -> None:
    layer, x = Recurrent(cells.GRU(), 1, 2), torch.randn(3, 4, 1)
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.raises(ShapeError, match=r"types must be \(4,\) as labels, got \(3,\)"):
        probes(layer, Batch(x), labels, types=torch.zeros(3))
    with pytest.raises(OptionError, match="layer 0 gives NaN or infinity, so there is nothing"):
        probes(layer, Batch(x * torch.nan), labels)
