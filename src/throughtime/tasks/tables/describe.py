"""What a table holds, for people: columns, types, steps, gaps, series and where it would be cut."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from throughtime.tasks.forecast.series import find_rows, find_series, step_of
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.clock import (
    find_time,
    read_times,
    said_step,
    time_columns,
    with_time,
    written,
)

if TYPE_CHECKING:
    from throughtime.tasks.forecast.series import TimedRows

_SHARE = 0.15  # of the steps, for the test, and as much for the validation
_FEW, _EMPTY = 8, "empty"

Row = tuple[str, str]


def describe_columns(table: DataTable, time: str = "") -> list[tuple[str, str, str, str]]:
    """Name, type, how many values are missing, and what the others are, of every column.

    Raises:
        DataError: the column of time that an option names is not there, or a time is missing.
    """
    time = find_time(table, time, [])
    rows = []
    parts = time_columns(table, time)
    for name in table.frame.columns:
        kind, values = _described(table, name)
        if name == time and kind != _EMPTY:
            times = read_times(table, time)
            ends = (
                written(float(end), times.form) for end in (min(times.values), max(times.values))
            )
            kind, values = "time", " to ".join(map(str, ends))
        elif name in parts:
            kind = f"part of the time, {kind}"
        rows.append((name, kind, str(table.frame[name].null_count()), values))
    return rows


def describe_rows(table: DataTable, time: str = "", series: str = "") -> list[Row]:
    """Time, step, series, gaps, and where a forecast would cut.

    Args:
        time, series: columns, as options name them; "" where they are to be found.

    Raises:
        DataError: a column is not there, or a time is missing, no date, or stands twice.
    """
    table.check_columns("series", [series] if series else [])
    time = find_time(table, time, [series] if series else [])
    table = with_time(table, time)
    series = series or find_series(table, time, [])
    rows = find_rows(table, time, series)
    step, even = step_of(rows)
    counts = [len(places) for places in rows.places.values()]
    said = f"{time or 'the order of rows'}, step {said_step(step, rows.times.form)}"
    many = f"{min(counts)} to {max(counts)} rows each"
    return [
        ("file", f"{table.name}: {table.form}, {len(table.frame)} rows"),
        ("time", said + ("" if even else ", uneven: each row is a step")),
        ("series", f"{len(counts)}, by {series}: {many}" if series else "1"),
        ("gaps", _gaps(rows, step, even)),
        ("split by time", _cuts(rows, step, even)),
    ]


def _gaps(rows: TimedRows, step: float, even: bool) -> str:
    if not even:
        longest = float(rows.differences().max()) if len(rows.differences()) else step
        return f"the longest is {said_step(longest, rows.times.form)}"
    lacking = [
        int(round((rows.times.values[p[-1]] - rows.times.values[p[0]]) / step)) + 1 - len(p)
        for p in rows.places.values()
    ]
    series = sum(1 for one in lacking if one)
    return f"{sum(lacking)} steps without a row" + (f", in {series} series" if series else "")


def _cuts(rows: TimedRows, step: float, even: bool) -> str:
    """The borders that the shares give; a horizon longer than a share moves them."""
    values = np.sort(rows.times.values)
    if even:
        held = math.ceil(_SHARE * (round((values[-1] - values[0]) / step) + 1))
        ends = [values[-1] + step * (1 - many * held) for many in (2, 1)]
    else:
        held = math.ceil(_SHARE * len(values))
        ends = [values[max(0, len(values) - many * held)] for many in (2, 1)]
    first, second = (str(written(float(end), rows.times.form)) for end in ends)
    return f"training to {first}, validation to {second}, then test"


def _described(table: DataTable, name: str) -> tuple[str, str]:
    """The type of a column, and its values."""
    column = table.frame[name].drop_nulls()
    if not len(column):
        return _EMPTY, ""
    if table.is_number(name) or column.dtype.is_temporal():
        kinds = {True: "numbers", False: "whole numbers"}
        kind = "time" if column.dtype.is_temporal() else kinds[column.dtype.is_float()]
        return kind, f"{_short(column.min())} to {_short(column.max())}"
    counted = Counter(map(str, column.to_list()))
    often = sorted(counted, key=lambda one: (-counted[one], one))[:_FEW]
    more = ", ..." if len(counted) > _FEW else ""
    return "text", f"{len(counted)} different: {', '.join(map(_short, often))}{more}"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
