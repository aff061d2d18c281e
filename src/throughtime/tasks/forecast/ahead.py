"""Forecasts: of windows, how good they are in the units of the file, and after the file's end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import DataError
from throughtime.tasks.forecast.find import list_columns
from throughtime.tasks.forecast.model import MEDIAN, QUANTILES, Forecaster, pinball
from throughtime.tasks.forecast.series import Series, TimedRows, find_rows, make_series
from throughtime.tasks.forecast.windows import Facts, Windows, find_scale
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.clock import MONTHS, NATIVE, NUMBER, format_time, merge_time
from throughtime.tasks.tables.task import check_like_training

if TYPE_CHECKING:
    import polars as pl


RULE = (
    "mae, rmse: of the median, in the target's units; mase: mae over that of the season before in "
    "the training part; pinball: of the quantiles, in deviations of the training part; "
    "coverage_80: share of the truth between the quantiles 0.1 and 0.9"
)
_AT_ONCE = 500  # windows
_CHECKED = 500  # windows before a forecast whose truth the band follows


def predict(
    model: nn.Module, table: DataTable, facts: Facts, horizon: int
) -> tuple[pl.DataFrame, list[str]]:
    """The quantiles of every target for `horizon` steps after the last one seen, series by series.

    Rows after it that have known columns and no target say what is known ahead.

    Returns:
        The column of series, where there is one, of time (or `step`, counted from 1), and of each
        target its median under its own name and the other quantiles under `name_10`, `name_90`;
        and sentences on what was not known.
    """
    import polars as pl

    cut = [_extend(one, table, facts, horizon) for one in series_like(table, facts)]
    series = [one for one, _, _ in cut]
    windows = Windows(series, facts, horizon)
    last = torch.tensor([count for _, count, _ in cut]) + torch.from_numpy(windows.firsts[:-1])
    origins = torch.cat([_choose_checked(windows), last]).sort().values
    answers = forecast_adaptive(model, windows, origins).double()
    at = torch.searchsorted(origins, last)
    parts = [_make_rows(one, count, answers[:, place], facts)
             for (one, count, _), place in zip(cut, at.tolist(), strict=True)]  # fmt: skip
    return pl.concat(parts), _make_notes(series, [lacking for _, _, lacking in cut], facts)


def _choose_checked(windows: Windows) -> Tensor:
    """The last windows of each series that the training did not see, a few of them."""
    origins, _ = windows.unseen()
    numbers = windows.series_of(origins)
    parts = [origins[numbers == n] for n in range(len(windows.series))]
    return torch.cat([part[-max(1, _CHECKED // len(parts)) :] for part in parts])


@torch.no_grad()
def forecast(model: nn.Module, windows: Windows, origins: Tensor) -> Tensor:
    """Quantiles in their order (horizon, B, D, 3), scaled, of some windows."""
    assert isinstance(model, Forecaster)
    parts = [model.quantiles(windows.cut(part)[0]) for part in origins.split(_AT_ONCE)]
    return torch.cat(parts, 1)


def forecast_adaptive(model: nn.Module, windows: Windows, origins: Tensor) -> Tensor:
    """The same, each with the band that the truth before it asks for."""
    answers, truth = forecast(model, windows, origins), windows.cut(origins)[1]
    return adapt_band(answers, truth, origins, windows.series_of(origins))


def measure(windows: Windows, origins: Tensor, answers: Tensor) -> dict[str, float]:
    """The metrics of quantiles (horizon, B, D, 3) for some windows; missing truth is left out."""
    truth, answers = windows.cut(origins)[1].double(), answers.double()
    number = windows.series_of(origins)
    errors = (truth - answers[..., MEDIAN]) * windows.deviations[number]
    return {
        "mae": float(errors.abs().nanmean()),
        "rmse": float(errors.square().nanmean().sqrt()),
        "mase": float((errors.abs() / windows.naive[number]).nanmean()),
        "pinball": float(pinball(answers, truth)),
        "coverage_80": float(find_inside(answers, truth).nanmean()),
    }


def find_inside(answers: Tensor, truth: Tensor) -> Tensor:
    """1 where the truth is in the band of quantiles, 0 where not, NaN where it is missing."""
    inside = ((answers[..., 0] <= truth) & (truth <= answers[..., -1])).double()
    return torch.where(torch.isfinite(truth), inside, torch.nan)


def series_like(table: DataTable, facts: Facts) -> list[Series]:
    """The series of another table than the training's, on steps of the same length.

    Raises:
        DataError: a column is missing, or a time is of another form or between two steps.
    """
    table = merge_time(table, facts.time)
    check_like_training(table, [*list_columns(facts), facts.time, facts.series])
    rows = find_rows(table, facts.time, facts.series)
    if _kind_of_form(rows.times.form) != _kind_of_form(facts.form):
        raise DataError(
            f"column {facts.time} of {table.name} must hold times as in the training, "
            f"{facts.form}, and it holds {rows.times.form}"
        )
    _check_steps(table, facts, rows)
    return make_series(table, rows, list_columns(facts), facts.step, facts.even)


def _kind_of_form(form: str) -> str:
    """What the values of times in this form count."""
    named = {NUMBER: NUMBER, "": ""}
    return MONTHS if form.startswith(MONTHS) else named.get(form, NATIVE)


def _check_steps(table: DataTable, facts: Facts, rows: TimedRows) -> None:
    for places in rows.places.values() if facts.even else ():
        times = rows.times.values[places]
        steps = (times - times[0]) / facts.step
        odd = np.flatnonzero(np.abs(steps - np.round(steps)) > 1e-3)
        if len(odd):
            row = places[odd[0]]
            raise DataError(
                f"column {facts.time} must go on in the steps of the training, and "
                f"{table.place(row)} has {table.frame[facts.time][row]}, which is between two; "
                "take it out"
            )


def _extend(one: Series, table: DataTable, facts: Facts, horizon: int) -> tuple[Series, int, int]:
    """The series to `horizon` steps after its last target, where they begin, how many it lacks."""
    seen = np.flatnonzero(np.isfinite(one.values[:, : len(facts.targets)]).any(1))
    count = int(seen[-1]) + 1 if len(seen) else 0
    if count < facts.length:
        name = f"series {one.name}" if facts.series else "the series"
        raise DataError(
            f"{name} of {table.name} must have the {facts.length} steps that a forecast reads, "
            f"and it has {count}; give more rows before"
        )
    values, times = one.values[: count + horizon], one.times[: count + horizon]
    lacking = count + horizon - len(values)
    values = np.concatenate([values, np.full((lacking, values.shape[1]), np.nan)])
    more = times[-1] + facts.step * np.arange(1, lacking + 1)
    return Series(one.name, np.concatenate([times, more]), values, one.seen), count, lacking


def _make_rows(one: Series, count: int, answers: Tensor, facts: Facts) -> pl.DataFrame:
    """One series' forecasts, from quantiles (horizon, D, 3)."""
    import polars as pl

    means, deviations = find_scale(one, facts)
    numbers = answers.numpy() * deviations[:, None] + means[:, None]
    horizon = len(numbers)
    columns: dict[str, list[object]] = {}
    if facts.series:
        columns[facts.series] = [one.name] * horizon
    times = one.times[count : count + horizon]
    columns[facts.time or "step"] = (
        [format_time(float(time), facts.form) for time in times]
        if facts.time
        else list(range(1, horizon + 1))
    )
    for place, target in enumerate(facts.targets):
        for number in (1, 0, 2):
            ending = "" if number == 1 else f"_{round(100 * QUANTILES[number])}"
            columns[target + ending] = numbers[:, place, number].tolist()
    return pl.DataFrame(columns)


def describe_new_series(series: list[Series], facts: Facts) -> list[str]:
    """What people should know of series that the training had not; nothing where it had all."""
    new = [one.name for one in series if one.name not in facts.scales]
    names = ", ".join(new[:5]) + (", ..." if len(new) > 5 else "")
    return [f"training had no series {names}; scaled as all of the training are"] if new else []


def _make_notes(series: list[Series], lacking: list[int], facts: Facts) -> list[str]:
    notes = describe_new_series(series, facts)
    if facts.known and max(lacking) > 0:
        notes.append(
            f"up to {max(lacking)} steps ahead have no row with {', '.join(facts.known)}; "
            "their mean stands in"
        )
    return notes


_RATE = 0.05  # of half the width, at most
_OUTSIDE = 1 - (QUANTILES[-1] - QUANTILES[0])


def adapt_band(answers: Tensor, truth: Tensor, origins: Tensor, series: Tensor) -> Tensor:
    """Quantiles with a band that is adapted to the errors of earlier forecasts.

    Where too much lies outside, the band widens, else it narrows:

        q <- q + r w ([s > q_then] - 0.2),   s = max(lower - y, y - upper)

    for each step ahead by itself, whenever the truth y of an earlier forecast has come; q_then is
    the q of that forecast, w half its width, and the band goes from lower - q to upper + q. So of
    what is forecast one after another a fifth lies outside in the long run, whatever the forecasts
    are; nothing that comes after a forecast has a part in its band. r is small where forecasts
    overlap.

    Args:
        answers: (horizon, B, D, 3) in their order.
        truth: (horizon, B, D), NaN where it is missing.
        origins: (B,) the first step ahead of each, in their order.
        series: (B,) the series of each.

    Source: Gibbs and Candes, Adaptive Conformal Inference Under Distribution Shift (2021), as a
    tracked quantile: Angelopoulos, Candes and Tibshirani, Conformal PID Control for Time Series
    Prediction (2023).
    """
    adapted = answers.clone()
    for number in series.unique():
        numbers = (series == number).nonzero()[:, 0]
        width = _widen(answers[:, numbers], truth[:, numbers], origins[numbers])
        adapted[:, numbers, :, 0] -= width
        adapted[:, numbers, :, -1] += width
    middle = answers[..., MEDIAN]
    adapted[..., 0] = torch.minimum(adapted[..., 0], middle)
    adapted[..., -1] = torch.maximum(adapted[..., -1], middle)
    return adapted


def _widen(answers: Tensor, truth: Tensor, origins: Tensor) -> Tensor:
    """q of every forecast of one series, (horizon, B, D)."""
    lower, upper = answers[..., 0], answers[..., -1]
    outside = torch.maximum(lower - truth, truth - upper)
    apart = torch.diff(origins, prepend=origins[:1] - 1)
    rates = (apart / len(answers)).clamp(max=_RATE)[:, None]
    steps = rates * (upper - lower) / 2
    comes = origins + torch.arange(len(answers))[:, None]  # when each truth does
    wider, first = torch.zeros_like(outside), 0
    for place in range(1, len(origins)):
        while comes[-1, first] < origins[place - 1]:
            first += 1
        part = slice(first, place)
        new = (comes[:, part] >= origins[place - 1]) & (comes[:, part] < origins[place])
        new = new[..., None] & torch.isfinite(outside[:, part])
        missed = (outside[:, part] > wider[:, part]).to(wider) - _OUTSIDE
        change = torch.where(new, steps[:, part] * missed, 0.0).sum(1)
        wider[:, place] = wider[:, place - 1] + change
    return wider
