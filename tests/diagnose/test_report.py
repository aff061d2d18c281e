"""The report: planted faults are named, healthy networks are not, and JSON keeps every number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime import GRU, LSTM, RNN, initialise
from throughtime.diagnose.report import Report
from throughtime.errors import OptionError

T, LAG = 50, 20
SEEDS = range(3)


def _x(seed: int) -> Tensor:
    return torch.rand(T, 8, 4, generator=torch.Generator().manual_seed(seed))


def _healthy(kind: str) -> nn.Module:
    if kind == "RNN":
        return initialise(RNN(4, 32), "orthogonal")
    return initialise((LSTM if kind == "LSTM" else GRU)(4, 32), chrono=3.0 * LAG)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_healthy_networks_have_no_trouble(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    report = throughtime.diagnose(_healthy(kind), _x(seed), lag=LAG)
    assert report.troubles == ()
    assert "No trouble found." in str(report)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_default_lstm_vanishes_and_the_advice_is_measured(seed: int) -> None:
    torch.manual_seed(seed)
    report = throughtime.diagnose(nn.LSTM(4, 32), _x(seed), lag=LAG)
    (trouble,) = report.troubles
    assert trouble.kind == "vanishing"
    horizon = report.lag_gradients[0].horizon_1e3_steps
    assert horizon is not None and horizon < LAG and f"after {horizon} steps" in str(report)
    assert trouble.log10_rho_before < -3
    assert trouble.log10_rho_after is not None and trouble.log10_rho_after > -1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_an_rnn_of_large_weights_explodes(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.RNN(4, 32)
    nn.init.normal_(model.weight_hh_l0, std=3 / math.sqrt(32))
    report = throughtime.diagnose(model, _x(seed), lag=LAG)
    assert [t.kind for t in report.troubles] == ["exploding"]
    assert report.modules[0].jacobians[0].lyapunov_nats_per_step[0] > 0.05


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
