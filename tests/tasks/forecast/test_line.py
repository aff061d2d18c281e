"""The line under a forecast, gaps in its history, and the band that validation holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from throughtime.tasks.forecast import Forecast, forecast
from throughtime.tasks.forecast.ahead import adapt_band, series_like
from throughtime.tasks.forecast.model import Forecaster, _extend_line, fit_line, fit_linear_part
from throughtime.tasks.forecast.series import _usual_across_gaps, usual_values
from throughtime.tasks.forecast.windows import Windows, interpolate_seen
from throughtime.tasks.tables.read import read
from throughtime.train.run import resolve


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
    assert interpolate_seen(values, seen)[1:].flatten().tolist() == [1, 2, 3, 4, 4, 4]
    assert torch.equal(interpolate_seen(values, torch.ones_like(values)), values)


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
    by_hand = _extend_line(windows.past(origins).double(), line)
    answers = model.eval().quantiles(windows.cut(origins)[0])[..., 1].double()
    assert torch.allclose(answers, by_hand.detach(), atol=1e-4)


def test_the_line_leaves_out_what_is_missing_of_the_truth() -> None:
    task = made(0.3)
    windows = task._windows
    origins = windows.origins["train"]
    x, y = windows.past(origins).double(), windows.cut(origins)[1].double()
    seen = torch.isfinite(y[0, :, 0])
    used = fit_line(windows)
    ahead = _extend_line(x, used)[0, :, 0]
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


def recursion(values: np.ndarray, season: int, follow: float) -> np.ndarray:
    """What is usual, by its definition, step by step; nothing is missing."""
    usual = values.copy()
    for t in range(season, len(values)):
        usual[t] = usual[t - season] + follow * (values[t - season] - usual[t - season])
    return usual


@pytest.mark.parametrize("follow", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("count", [5, 7, 100, 701])
def test_what_is_usual_is_its_recursion(follow: float, count: int) -> None:
    values = np.random.default_rng(1).standard_normal((count, 2))
    expected = recursion(values, 7, follow)
    assert np.allclose(usual_values(values, 7, follow), expected)
    assert np.allclose(_usual_across_gaps(values, 7, follow), expected)


def test_what_is_usual_with_gaps_is_that_by_hand() -> None:
    nan = np.nan
    values = np.array([1, nan, 3, 2, nan, 6, nan, nan, nan, 4, nan, nan])[:, None]
    # first season 1 2 3; then apart by 1 2 3, half of it followed; then nothing was seen
    usual = [1, 2, 3, 1, 2, 3, 1.5, 3, 4.5, 1.5, 3, 4.5]
    assert usual_values(values, 3, 0.5)[:, 0].tolist() == usual


def test_what_is_usual_and_the_line_read_nothing_behind_the_history() -> None:
    task = made(0.4)
    frame = pl.read_csv("data.csv")
    at = int(task._windows.origins["test"][3])
    frame = frame.with_columns(y=pl.when(pl.col("t") >= at).then(-50.0).otherwise(pl.col("y")))
    frame.write_csv("data.csv")
    other = Windows(series_like(read("data.csv"), task.facts), task.facts, 4)
    assert task._windows.channels.seasonal
    origin = torch.tensor([at])
    for one, two in zip(task._windows.seasons(origin), other.seasons(origin), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(task._windows.cut(origin)[0], other.cut(origin)[0])


def test_where_the_season_tells_more_the_line_stands_on_it() -> None:
    generator = np.random.default_rng(3)
    step = np.arange(600)
    shape = generator.standard_normal(40)
    values = 5 * shape[step % 40] + np.cumsum(0.2 * generator.standard_normal(600))
    pl.DataFrame({"t": step, "y": values}).write_csv("data.csv")
    task = Forecast(
        resolve(Forecast, {"data": "data.csv", "target": "y", "horizon": 4, "threads": 1})
    )
    windows, model = task._windows, task.model().eval()
    assert isinstance(model, Forecaster) and windows.facts.season == 40
    weights, seasonal = fit_linear_part(windows)
    assert seasonal
    model.set_line(weights, seasonal)
    origins = windows.origins["test"][:3]
    answers = model(windows.cut(origins)[0])[..., 1].detach()
    scaled = (values - windows.means[0, 0].item()) / windows.deviations[0, 0].item()
    usual = recursion(scaled[:, None], 40, windows.facts.follow)[:, 0]
    apart = scaled - usual
    for place, origin in enumerate(origins.tolist()):
        lags = np.concatenate([[1.0], apart[origin - windows.length : origin]])
        for ahead in range(4):
            after = origin + ahead - 40
            base = usual[after] + windows.facts.follow * apart[after]
            told = base + lags @ weights[:, ahead].numpy()
            assert float(answers[ahead, place, 0]) == pytest.approx(told, abs=1e-4)


def test_the_band_follows_by_its_equation_and_reads_nothing_ahead() -> None:
    generator = torch.Generator().manual_seed(0)
    horizon, count = 3, 30
    truth = torch.randn(horizon, count, 1, generator=generator)
    truth[1, 4] = torch.nan
    answers = torch.tensor([-0.5, 0.0, 0.4]).expand(horizon, count, 1, 3)
    origins, series = torch.arange(10, 10 + 2 * count, 2), torch.zeros(count, dtype=torch.long)
    found = adapt_band(answers, truth, origins, series)
    wider = torch.zeros(horizon, count)
    for ahead in range(horizon):
        for place in range(1, count):
            q = float(wider[ahead, place - 1])
            for other in range(place):
                comes = int(origins[other]) + ahead
                if int(origins[place - 1]) <= comes < int(origins[place]):
                    y = float(truth[ahead, other, 0])
                    if y == y:
                        outside = max(-0.5 - y, y - 0.4) > float(wider[ahead, other])
                        q += 0.05 * 0.45 * (outside - 0.2)
            wider[ahead, place] = q
    assert torch.allclose(found[..., 0, 0], -0.5 - wider, atol=1e-6)
    assert torch.allclose(found[..., 0, 2], 0.4 + wider, atol=1e-6)
    changed = truth.clone()
    changed[:, 20:] = 9.0
    again = adapt_band(answers, changed, origins, series)
    assert torch.equal(found[:, :21], again[:, :21]) and not torch.equal(found, again)


def test_a_fifth_lies_outside_in_the_long_run_whatever_is_forecast() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 7 * torch.randn(2, 3000, 1, generator=generator) + 3
    answers = torch.tensor([-1.0, 0.0, 1.0]).expand(2, 3000, 1, 3)
    found = adapt_band(answers, truth, torch.arange(3000), torch.zeros(3000, dtype=torch.long))
    inside = (found[..., 0] <= truth) & (truth <= found[..., 2])
    assert float(inside[:, 1500:].double().mean()) == pytest.approx(0.8, abs=0.01)
