"""The line under a forecast, gaps in its history, and the band that validation holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from throughtime.tasks.forecast import Forecast, forecast
from throughtime.tasks.forecast.baselines import _ahead, fit_line
from throughtime.tasks.forecast.model import Forecaster
from throughtime.tasks.forecast.windows import between
from throughtime.train.begin import resolve


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(missing: float = 0.0, **options: Any) -> Forecast:
    generator = np.random.default_rng(0)
    step = np.arange(300)
    values = np.sin(step / 4) + 0.2 * generator.standard_normal(300)
    values[generator.random(300) < missing] = np.nan
    pl.DataFrame({"t": step, "y": values}).fill_nan(None).write_csv("data.csv")
    given = {"data": "data.csv", "target": "y", "horizon": 4, "hidden": 4, "threads": 1}
    task = Forecast(resolve(Forecast, given | options))
    assert isinstance(task, Forecast)
    return task


def test_what_is_missing_lies_on_a_line_and_nothing_behind_is_read() -> None:
    values = torch.tensor([0.0, 1, 1, 1, 4, 4, 4])[:, None, None]
    seen = torch.tensor([0.0, 1, 0, 0, 1, 0, 0])[:, None, None]
    # before the first one the mean stands, which nothing was seen of: from there to the first
    assert between(values, seen)[1:].flatten().tolist() == [1, 2, 3, 4, 4, 4]
    assert torch.equal(between(values, torch.ones_like(values)), values)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_fresh_net_forecasts_by_the_line_of_least_squares(missing: float) -> None:
    task = made(missing)
    windows, model = task._windows, task.model()
    assert isinstance(model, Forecaster)
    task.loss(model.train(), task.epoch(0)[0])
    line = fit_line(windows)
    assert torch.allclose(model.get_buffer("line").double(), line, atol=1e-6)
    for layer in (model.direct, model.readout):
        for weight in layer.parameters():
            torch.nn.init.zeros_(weight)
    origins = windows.few("test")
    by_hand = _ahead(windows.past(origins).double(), line)
    answers = model.eval().quantiles(windows.cut(origins)[0])[..., 1].double()
    assert torch.allclose(answers, by_hand.detach(), atol=1e-4)


def test_the_line_leaves_out_what_is_missing_of_the_truth() -> None:
    task = made(0.3)
    windows = task._windows
    origins = windows.origins["train"]
    x, y = windows.past(origins).double(), windows.cut(origins)[1].double()
    seen = torch.isfinite(y[0, :, 0])
    used = fit_line(windows)
    ahead = _ahead(x, used)[0, :, 0]
    residual = (y[0, :, 0] - ahead)[seen]
    assert residual.square().mean() < (y[0, :, 0] - x[-1, :, 0])[seen].square().mean()


def test_the_band_holds_the_validation_part() -> None:
    task = made()
    model = task.model().eval()
    assert isinstance(model, Forecaster)
    figures = task.score(model, "validation").metrics
    assert figures["coverage_80"] == pytest.approx(0.8, abs=0.03)
    windows = task._windows
    origins = windows.few("validation")
    answers, truth = forecast(model, windows, origins), windows.cut(origins)[1]
    inside = (answers[..., 0] <= truth) & (truth <= answers[..., 2])
    assert inside.double().mean(1).min() > 0.7
    assert task.score(model, "validation").metrics == figures  # it is held anew, to the same
