"""Forecasts of what comes after the end of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import DataError
from throughtime.tasks.forecast.find import columns_of
from throughtime.tasks.forecast.model import QUANTILES, Forecaster
from throughtime.tasks.forecast.options import Facts
from throughtime.tasks.forecast.series import (
    Series,
    TimedRows,
    find_rows,
    make_series,
)
from throughtime.tasks.forecast.windows import channels_of, encode, scale_of
from throughtime.tasks.tables.clock import MONTHS, NATIVE, NUMBER, written
from throughtime.tasks.tables.table import DataTable
from throughtime.tasks.tables.task import check_like_training

if TYPE_CHECKING:
    import polars as pl


def predict(
    model: nn.Module, table: DataTable, facts: Facts, horizon: int
) -> tuple[pl.DataFrame, list[str]]:
    """The quantiles of every target for `horizon` steps after the last one seen, series by series.

    TimedRows behind it, with known columns and no target, say what is known ahead.

    Returns:
        The column of series, where there is one, of time (or `step`, counted from 1), and of each
        target its median under its own name and the other quantiles under `name_10`, `name_90`;
        and sentences on what was not known.
    """
    import polars as pl

    series = series_like(table, facts)
    cut = [_window(one, table, facts, horizon) for one in series]
    inputs = torch.stack([encode(window, facts)[0] for window, _ in cut], 1)
    inputs[facts.length :, :, : channels_of(facts).width - channels_of(facts).known] = 0
    with torch.no_grad():
        assert isinstance(model, Forecaster)
        answers = model.quantiles(inputs).double()
    parts = [
        _rows(one, answers[:, number], facts) for number, (one, _) in enumerate(cut)
    ]  # fmt: skip
    return pl.concat(parts), _notes([one for one, _ in cut], [n for _, n in cut], facts)


def series_like(table: DataTable, facts: Facts) -> list[Series]:
    """The series of another table than the training's, on steps of the same length.

    Raises:
        DataError: a column is missing, or a time is of another form or between two steps.
    """
    check_like_training(table, [*columns_of(facts), facts.time, facts.series])
    rows = find_rows(table, facts.time, facts.series)
    if _kind(rows.times.form) != _kind(facts.form):
        raise DataError(
            f"column {facts.time} of {table.name} must hold times as in the training, "
            f"{facts.form}, and it holds {rows.times.form}"
        )
    _check_steps(table, facts, rows)
    return make_series(table, rows, columns_of(facts), facts.step, facts.even)


def _kind(form: str) -> str:
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


def _window(one: Series, table: DataTable, facts: Facts, horizon: int) -> tuple[Series, int]:
    """The last `length` steps with a target and `horizon` after them; how many the file lacks."""
    seen = np.flatnonzero(np.isfinite(one.values[:, : len(facts.targets)]).any(1))
    count = int(seen[-1]) + 1 if len(seen) else 0
    if count < facts.length:
        name = f"series {one.name}" if facts.series else "the series"
        raise DataError(
            f"{name} of {table.name} must have the {facts.length} steps that a forecast reads, "
            f"and it has {count}; give more rows before"
        )
    there = one.values[count : count + horizon].copy()
    there[:, : len(facts.targets)] = np.nan
    lacking = horizon - len(there)
    empty = np.full((lacking, one.values.shape[1]), np.nan)
    values = np.concatenate([one.values[count - facts.length : count], there, empty])
    times = one.times[count - facts.length : count + horizon]
    more = times[-1] + facts.step * np.arange(1, lacking + 1)
    return Series(one.name, np.concatenate([times, more]), values, one.seen), lacking


def _rows(one: Series, answers: Tensor, facts: Facts) -> pl.DataFrame:
    """One series' forecasts, from quantiles (horizon, D, 3)."""
    import polars as pl

    means, deviations = scale_of(one, facts)
    numbers = answers.numpy() * deviations[:, None] + means[:, None]
    horizon = len(numbers)
    columns: dict[str, list[object]] = {}
    if facts.series:
        columns[facts.series] = [one.name] * horizon
    times = one.times[-horizon:]
    columns[facts.time or "step"] = (
        [written(float(time), facts.form) for time in times]
        if facts.time
        else list(range(1, horizon + 1))
    )
    for place, target in enumerate(facts.targets):
        for number in (1, 0, 2):
            ending = "" if number == 1 else f"_{round(100 * QUANTILES[number])}"
            columns[target + ending] = numbers[:, place, number].tolist()
    return pl.DataFrame(columns)


def _notes(series: list[Series], lacking: list[int], facts: Facts) -> list[str]:
    new = [one.name for one in series if one.name not in facts.scales]
    notes = []
    if new:
        names = ", ".join(new[:5]) + (", ..." if len(new) > 5 else "")
        notes.append(f"training had no series {names}; scaled as all series of the training are")
    if facts.known and max(lacking) > 0:
        notes.append(
            f"up to {max(lacking)} steps ahead have no row with {', '.join(facts.known)}; "
            "their mean stands in"
        )
    return notes
