"""The season: found through trend and noise, in steps of any length, and none where none is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from throughtime.tasks.forecast.find import find_facts
from throughtime.tasks.forecast.series import Series, find_calendar_lags, find_season
from throughtime.tasks.forecast.windows import ForecastRecipe
from throughtime.tasks.tables.clock import MONTHS, NUMBER

DAY = 86400.0
STEPS = {  # how long a series, its season, the lags that the calendar has
    "months": (72, 12, [12]),
    "quarters": (40, 4, [4]),
    "weeks": (260, 52, [52]),
    "days": (200, 7, [7, 365]),
    "hours": (700, 24, [24, 168, 8766]),
}
TRENDS = ("none", "line", "walk", "growth")


def series_of(values: np.ndarray) -> Series:
    return Series("", np.arange(len(values), dtype=np.float64), values[:, None], len(values))


def season_of(values: np.ndarray, calendar: list[int]) -> int:
    return find_season([series_of(values)], [len(values) + 1.0], 750, calendar)


def make_values(steps: str, trend: str, noise: float, smooth: bool, seed: int) -> np.ndarray:
    """A season of variance 1 with a trend and noise."""
    draw = np.random.default_rng(seed)
    count, season, _ = STEPS[steps]
    at = np.arange(season) * 2 * np.pi / season
    pattern = np.sin(at) + 0.5 * np.sin(2 * at + 1) if smooth else draw.standard_normal(season)
    pattern = (pattern - pattern.mean()) / pattern.std()
    time = np.arange(count)
    values = pattern[time % season] + noise * draw.standard_normal(count)
    if trend == "line":
        values += 8 * time / count
    if trend == "walk":
        values += 0.15 * np.cumsum(draw.standard_normal(count))
    return (values + 4) * np.exp(1.5 * time / count) if trend == "growth" else values


@pytest.mark.parametrize("trend", TRENDS)
@pytest.mark.parametrize("steps", STEPS)
def test_a_season_is_found_through_trend_and_noise(steps: str, trend: str) -> None:
    _, season, calendar = STEPS[steps]
    for seed in range(3):
        for noise in (0.1, 0.6):
            for smooth in (True, False):
                values = make_values(steps, trend, noise, smooth, seed)
                assert season_of(values, calendar) == season, (seed, noise, smooth)


def test_a_season_that_no_calendar_has_is_found() -> None:
    for season in (5, 11, 30):
        at = np.arange(300) * 2 * np.pi / season
        noise = np.random.default_rng(season).standard_normal(300)
        values = np.sin(at) + np.arange(300) / 30 + 0.4 * noise
        assert season_of(values, []) == season == season_of(values, [24])


def test_of_a_day_and_a_week_the_week_is_taken_where_days_differ() -> None:
    hours = np.arange(24 * 7 * 8)
    day = np.sin(hours * 2 * np.pi / 24)
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(hours))
    assert season_of(day + noise, [24, 168]) == 24
    weekend = np.where(hours // 24 % 7 > 4, 0.2, 1.0)
    assert season_of(day * weekend + noise, [24, 168]) == 168


@pytest.mark.parametrize("kind", ["line", "noise", "walk"])
def test_where_no_season_is_seldom_one_is_found(kind: str) -> None:
    found = 0
    for seed in range(10):
        for count in (48, 300):
            noise = np.random.default_rng([seed, count]).standard_normal(count)
            line = np.arange(count) / count * 5 + 0.3 * noise
            values = {"line": line, "noise": noise, "walk": np.cumsum(noise)}[kind]
            found += season_of(values, [12]) > 1
    assert found <= 3  # of 20


def test_missing_values_and_other_series_do_not_hide_it() -> None:
    values = make_values("months", "line", 0.3, True, 0)
    with_gaps = values.copy()
    with_gaps[np.random.default_rng(1).random(len(values)) < 0.3] = np.nan
    assert season_of(with_gaps, [12]) == 12
    short, empty = series_of(values[:20]), series_of(np.full(50, np.nan))
    assert find_season([empty, short, series_of(values)], [100.0], 750, [12]) == 12
    assert find_season([empty, short], [100.0], 750, [12]) == 1


@pytest.mark.parametrize(
    ("form", "step", "even", "lags"),
    [
        (f"{MONTHS}1", 1, True, [12]),
        (f"{MONTHS}31", 3, True, [4]),
        (f"{MONTHS}1", 6, True, [2]),
        (f"{MONTHS}1", 12, True, []),
        ("%Y-%m-%d", 7 * DAY, True, [52]),
        ("%Y-%m-%d", DAY, True, [7, 365]),
        ("%Y-%m-%d %H:%M", 1800, True, [48, 336, 17532]),
        ("%Y-%m-%d", 5 * DAY, True, [73]),
        ("%Y-%m-%d", DAY, False, []),
        (NUMBER, 1, True, []),
    ],
)
def test_lags_of_the_calendar(form: str, step: float, even: bool, lags: list[int]) -> None:
    assert find_calendar_lags(form, step, even) == lags


def test_a_file_of_months_has_a_year(tmp_path: Path) -> None:
    values = make_values("months", "line", 0.3, False, 3)
    months = pl.date_range(pl.date(2001, 1, 1), pl.date(2006, 12, 1), "1mo", eager=True)
    data = tmp_path / "months.csv"
    pl.DataFrame({"month": months, "y": values}).write_csv(data)
    assert find_facts(ForecastRecipe(data=str(data), target="y", horizon=6)).season == 12
