"""The report as data: JSON keeps every number, and a lag has its rule."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime.diagnosis.report import Report
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


def test_the_table_has_a_number_of_every_panel() -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(nn.GRU(4, 8), [_x(s) for s in range(4)], lag=9, clip=1e3)
    lines = str(report).splitlines()
    (g,), (start,), (c,) = report.lag_gradients, report.torch_default, report.capacities
    (row,) = [line.split() for line in lines if line.startswith("model.0")]
    (times,) = report.modules[0].gates
    assert row == [
        "model.0", str(g.horizon_e_steps), str(g.horizon_1e3_steps),
        f"{g.log10_rho_by_lag[9]:.2f}", f"{start.log10_rho_by_lag[9]:.2f}",
        f"{report.modules[0].jacobians[0].lyapunov_nats_per_step[0]:+.3f}",
        f"{sum(tau > 9 for tau in times.tau_steps) / 8:.0%}", str(c.memory_steps),
        f"{c.capacity:.1f}",
    ]  # fmt: skip
    text = str(report)
    assert f"its part up to lag {report.weight_lags[0].steps_to(0.99)} has" in text
    assert "Gradient of 4 batches: median norm" in text and "Clipped at 1e+03: 0% of the" in text
    assert report.evenness is not None
    ratios = [s.ratio for s in report.evenness.shares if s.ratio is not None]
    assert f"from {min(ratios):.1e} (" in text and f" to {max(ratios):.1e} (" in text
    still = replace(report.evenness.shares[0], ratio=0.0, parameter="frozen")
    even = replace(report.evenness, shares=(*report.evenness.shares, still))
    assert str(replace(report, evenness=even)) == text, "what nothing moves stands on the page"


def test_two_reports_stand_side_by_side_at_the_lag_of_the_first() -> None:
    torch.manual_seed(0)
    model = nn.GRU(4, 8)
    before = throughtime.diagnose(model, _x(0), lag=20)
    after = throughtime.diagnose(throughtime.cure(model, before).model, _x(0), lag=25)
    title, head, row = before.compare(after).splitlines()
    assert title == "GRU -> cured GRU; trouble: vanishing -> none"
    assert head.split() == ["layer", "K(1e-3),", "steps", "log10", "rho(20)", "r^2(20)"]
    (g,), (new,) = before.lag_gradients, after.lag_gradients
    held = [r.capacities[0].r2_by_lag[20] for r in (before, after)]
    assert row.split() == [
        "model.0", str(g.horizon_1e3_steps), "->", "none", f"{g.log10_rho_by_lag[20]:.2f}", "->",
        f"{new.log10_rho_by_lag[20]:.2f}", f"{held[0]:.2g}", "->", f"{held[1]:.2g}",
    ]  # fmt: skip
    (other,) = throughtime.diagnose(nn.LSTM(4, 8, 2), _x(0)).compare(before).splitlines()[3:]
    assert other.split() == ["model.1", "not", "in", "the", "other"]


def test_the_table_tells_what_was_not_measured() -> None:
    text = str(throughtime.diagnose(nn.GRU(4, 8), _x(0)[:8]))
    assert "Not measured: jacobians: a Lyapunov spectrum needs more than 10 steps, got 8." in text
    assert "Not measured: bands: a spread needs at least 2 batches, got 1." in text


@pytest.mark.soak
def test_a_full_report_takes_at_most_20_seconds_of_one_core() -> None:
    """LSTM 2 x 128, T = 200, B = 32, 16 batches; two cores are no slower than one."""
    torch.manual_seed(0)
    batches = [torch.rand(200, 32, 8) for _ in range(16)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begun = time.process_time()
        report = throughtime.diagnose(
            nn.LSTM(8, 128, 2), batches, lambda y: y.square().mean(), clip=1.0, truncation=50
        )
        spent = time.process_time() - begun
    finally:
        torch.set_num_threads(threads)
    assert report.missing == ()
    assert spent <= 20


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_folder_that_is_not_there_is_made(name: str, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    report = throughtime.diagnose(nn.GRU(4, 8), _x(0))
    file = tmp_path / "of" / "today" / name
    report.save(file)
    text = file.read_text(encoding="utf-8")
    assert "<html" in text if name.endswith("html") else Report.from_json(text) == report
    with pytest.raises(FileExistsError, match="report"):
        report.save(file / "below a file.json")
