"""The report as data: JSON keeps every number, and a lag has its rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime.diagnose.report import Report
from throughtime.errors import OptionError

T = 50


def _x(seed: int) -> Tensor:
    return torch.rand(T, 8, 4, generator=torch.Generator().manual_seed(seed))


class Tagger(nn.Module):
    """Two bidirectional layers and a read-out at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.layers = nn.GRU(4, 8, 2, batch_first=True, bidirectional=True, dropout=0.5)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.layers(self.words(x))[0])
        return y


def test_a_tagger_with_its_loss_and_json_both_ways() -> None:
    torch.manual_seed(0)
    model, x = Tagger(), torch.randint(10, (3, 15))

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(y.flatten(0, 1), target.flatten())

    report = throughtime.diagnose(model, [(x, x % 3)], loss)
    assert [(g.layer, g.direction) for g in report.lag_gradients] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert report.loss == pytest.approx(loss(model.eval()(x), x % 3).item(), rel=1e-5)
    assert Report.from_json(report.to_json()) == report
    assert " -> " in report.compare(throughtime.diagnose(Tagger(), x))


def test_what_is_not_finite_survives_json() -> None:
    model = nn.RNN(4, 3, nonlinearity="relu")
    nn.init.zeros_(model.weight_hh_l0)
    report = throughtime.diagnose(model, _x(0))
    assert report.lag_gradients[0].log10_rho_by_lag[1] == -math.inf
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("lag", [0, T, True, 2.5])
def test_a_lag_outside_the_sequence_is_refused(lag: Any) -> None:
    with pytest.raises(OptionError, match="lag must be"):
        throughtime.diagnose(nn.GRU(4, 8), _x(0), lag=lag)


def test_text_that_is_no_report_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON of a Report"):
        Report.from_json('{"model": "LSTM"}')
