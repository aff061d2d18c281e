"""Probes of layers whose knowledge is known, and a regression fitted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import LSTM, Recurrent, cells, probe
from throughtime.diagnosis.quantities.probe import fit_softmax_regression
from throughtime.errors import NotFiniteError, OptionError, ShapeError

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
    found = probe(_shifting([3, 3]), signs.unsqueeze(-1), _labels(signs, k))
    assert [(one.module, one.layer) for one in found] == [("", None), ("", 0), ("", 1)]
    for one, known in zip(found, (k == 0, *knows), strict=True):
        assert one.classes == 2
        assert one.held_out_count == (T - k) * B // 2
        assert one.accuracy == 1 if known else one.accuracy < 0.62
        assert one.control_accuracy < 0.62
        assert one.selectivity == one.accuracy - one.control_accuracy


def test_several_batches_are_one_set_of_rows() -> None:
    """Rows of two batches, of other lengths too, are held out and fitted together."""
    signs = _signs()
    layer = _shifting([3])
    parts = [signs[:, :9], signs[: T - 5, 9:]]
    labels = [(part > 0).long() for part in parts]
    raw, found = probe(layer, [part.unsqueeze(-1) for part in parts], labels)
    assert (raw.accuracy, found.accuracy) == (1, 1)
    fitted = torch.randperm(B, generator=torch.Generator().manual_seed(0)) < B // 2
    steps = torch.tensor([T] * 9 + [T - 5] * (B - 9))
    assert found.held_out_count == int(steps[~fitted].sum())


def test_every_recurrent_module_of_a_model_of_torchs_is_probed() -> None:
    """Behind a layer that forgets, the next one cannot know; labels in the layout of the model."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.GRU(1, 4, batch_first=True)
            self.cut = nn.Linear(4, 1)
            self.second = nn.LSTM(1, 4, batch_first=True)
            nn.init.zeros_(self.cut.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.cut(self.first(x)[0]))[0]

    signs = _signs().float().t()
    found = probe(Two(), signs.unsqueeze(-1), (signs > 0).long())
    places = [("first", None), ("first", 0), ("second", None), ("second", 0)]
    assert [(one.module, one.layer) for one in found] == places
    assert found[0].accuracy == 1 and found[1].accuracy > 0.9
    assert max(one.accuracy for one in found[2:]) < 0.62
    assert str(found[0]).startswith("first, input: 100.0 %, shuffled labels ")


def test_what_is_memorised_is_not_selective() -> None:
    """Labels by kind: with the kind at hand, true and random ones are said equally well."""
    draw = torch.Generator().manual_seed(2)
    types = torch.randint(0, 12, (T, B), generator=draw)
    layer = Recurrent(cells.Elman("identity"), 12, 12, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").zero_()
        layer.get_parameter("weight_ih_l0").copy_(torch.eye(12))
    x = torch.nn.functional.one_hot(types, 12).double()
    raw, found = probe(layer, x, types % 3, types=types)
    assert raw.selectivity == 0
    assert (found.classes, found.accuracy, found.control_accuracy) == (3, 1, 1)
    assert found.selectivity == 0
    _, alone = probe(layer, x, types % 3)
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
    batch = {"x": signs.unsqueeze(-1), "lengths": lengths}
    for labels in (signs[0], signs[lengths - 1, torch.arange(B)]):
        _, found = probe(layer, batch, (labels > 0).long())
        assert (found.accuracy, found.held_out_count) == (1, B // 2)
    _, found = probe(layer, batch, (signs > 0).long())
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
    found = fit_softmax_regression(f, labels, 3)
    assert torch.allclose(found[:-1], w[:-1], atol=1e-3)
    said = (f @ found[:-1] + found[-1]).softmax(1)
    assert torch.allclose(said, (ones @ w).softmax(1), atol=1e-3)


def test_the_layer_is_left_as_it_was_and_a_seed_repeats() -> None:
    layer, signs = LSTM(1, 6, num_layers=2, dropout=0.5), _signs()
    batch, labels = signs.unsqueeze(-1).float(), (signs > 0).long()
    assert probe(layer, batch, labels) == probe(layer, batch, labels)
    assert layer.training


@pytest.mark.parametrize(
    ("rows", "labels", "kind", "text"),
    [
        (4, torch.zeros(3, 4).long(), OptionError, "two different labels among the rows it is fit"),
        (4, torch.full((4,), -1), OptionError, "there are no labels; give integers from 0"),
        (4, torch.zeros(5).long(), ShapeError, r"\(T, B\) is one of \[\(3, 4\)\]; got \(5,\)"),
        (1, torch.zeros(1).long(), ShapeError, "at least 2 rows, one to hold out, got 1"),
    ],
)
def test_what_cannot_be_probed_is_refused(rows: int, labels: Tensor, kind: Any, text: str) -> None:
    layer = Recurrent(cells.GRU(), 1, 2)
    with pytest.raises(kind, match=text):
        probe(layer, torch.randn(3, rows, 1), labels)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (torch.rand(6, 4), "labels must be integers, got torch.float32"),
        (torch.rand(6, 4) > 0.5, "labels must be integers, got torch.bool"),
        ([[0, 1]], "labels must be tensors, got list"),
        (7, "labels must be a tensor, or one a batch, got int"),
    ],
)
def test_labels_that_are_no_integers_are_refused(labels: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        probe(LSTM(2, 3), torch.randn(6, 4, 2), labels)


def test_integers_of_any_width_are_the_same_labels() -> None:
    torch.manual_seed(0)
    layer, x = LSTM(2, 3), torch.randn(6, 4, 2)
    labels = torch.randint(2, (6, 4))
    assert probe(layer, x, labels.to(torch.int32)) == probe(layer, x, labels)


def test_what_does_not_belong_together_is_refused() -> None:
    layer, x = Recurrent(cells.GRU(), 1, 2), torch.randn(3, 4, 1)
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.raises(ShapeError, match=r"types must be \(4,\) as labels, got \(3,\)"):
        probe(layer, x, labels, types=torch.zeros(3))
    with pytest.raises(ShapeError, match="labels must be one tensor a batch, 2, got 1"):
        probe(layer, [x, x], labels)
    with pytest.raises(NotFiniteError, match="is NaN or infinity, first at step 0"):
        probe(layer, x * torch.nan, labels)
