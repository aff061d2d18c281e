"""`throughtime data FILE`: what training would read of a file; nothing is trained."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from throughtime.cli.shown import show_table
from throughtime.tasks import find
from throughtime.tasks.forecast.series import TimedRows, find_rows, find_rows_step, find_series
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.clock import (
    describe_step,
    find_time,
    format_time,
    merge_time,
    read_times,
    time_columns,
)
from throughtime.tasks.tables.read import TOKEN_FILES, is_plain, read

if TYPE_CHECKING:
    from throughtime.cli import Commands

_SHARE = 0.15  # of the steps, for the test, and as much for the validation
_FEW, _EMPTY = 8, "empty"
_COLUMNS = {
    "time": "Column of time. Default: found.",
    "series": "Column that tells series apart. Default: found.",
    "target": "Also what a forecast of these would read.",
    "label": "Also what classes by this would be made from.",
    "token": "Only what tags of these tokens would be made from, by --label or a column found.",
    "source": "Only what translations of this would be made from, into --target or the other one.",
}  # the flags that name columns, with their help


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("data", data)
    parser.add_argument("file", metavar="FILE", help="As `throughtime train` takes it in --data.")
    for flag, text in _COLUMNS.items():
        metavar = "COL,.." if flag == "target" else "COL"
        parser.add_argument(f"--{flag}", metavar=metavar, default="", help=text)


def data(
    file: str, time: str, series: str, target: str, label: str, token: str, source: str
) -> None:
    """Show what would be read: columns, types, steps, gaps, series, splits. Trains nothing."""
    if token or file.casefold().endswith(TOKEN_FILES):
        _print_read("tag", {"data": file, "token": token, "label": label, "series": series})
        return
    if source:
        _print_read("translate", {"data": file, "source": source, "target": target})
        return
    named = time or series or target or label
    if file.casefold().endswith(".txt") and not named and is_plain(file):
        _print_read("language", {"data": file})
        print(f"\ntry: throughtime train language --data {shlex.quote(file)}")
        return
    table = read(file)
    print()
    show_table(describe_columns(table, time), "column", "type", "missing", "values")
    # A file of classes need have no even time; the task itself reports what is wrong there.
    if not label or time or target:
        print()
        show_table(describe_rows(table, time, series))
    options = {"data": file, "time": time, "series": series}
    if target:
        _print_read("forecast", options | {"target": target})
    if label:
        _print_read("classify", options | {"label": label})
    if not target and not label:
        print(f"\n{_suggest(table, file, time, series)}")


def _print_read(task: str, options: dict[str, str]) -> None:
    from throughtime.train.run import resolve

    kind = find(task)
    print(f"\n{task}:")
    made = kind(resolve(kind, {name: value for name, value in options.items() if value}))
    print()
    show_table(made.describe_data())


def _suggest(table: DataTable, file: str, time: str, series: str) -> str:
    """A command that trains on the file, by what its columns look like."""
    time = find_time(table, time, [series] if series else [])
    parts = time_columns(table, time)
    series = series or find_series(merge_time(table, time), time, [])
    others = [name for name in table.frame.columns if name not in (*parts, series)]
    numbers = [name for name in others if table.is_number(name)]
    few = [name for name in others if _is_class(table, name) and {*numbers} - {name}]
    label = table.roles.get("label") or ("" if time or not few else few[-1])
    target = next((name for name in numbers if table.frame[name].dtype.is_float()), "")
    if label:
        task, flag, column = "classify", "--label", label
    elif numbers:
        task, flag, column = "forecast", "--target", target or numbers[0]
    else:
        task, flag, column = "translate", "--source", (others or table.frame.columns)[0]
    words = ["throughtime", "train", task, "--data", file, flag, column]
    return f"try: {shlex.join(words)}"


def _is_class(table: DataTable, name: str) -> bool:
    """Whether a column has few values that repeat, as classes do."""
    values = table.frame[name].drop_nulls()
    if values.dtype.is_float() or values.dtype.is_temporal():
        return False
    return 2 <= values.n_unique() <= min(30, len(values) // 5)


def describe_columns(table: DataTable, time: str = "") -> list[tuple[str, str, str, str]]:
    """Name, type, how many values are missing, and what the others are, of every column."""
    time = find_time(table, time, [])
    rows = []
    parts = time_columns(table, time)
    for name in table.frame.columns:
        kind, values = _describe_column(table, name)
        if name == time and kind != _EMPTY:
            times = read_times(table, time)
            ends = (
                format_time(float(end), times.form)
                for end in (min(times.values), max(times.values))
            )
            kind, values = "time", " to ".join(map(str, ends))
        elif name in parts:
            kind = f"part of the time, {kind}"
        rows.append((name, kind, str(table.frame[name].null_count()), values))
    return rows


def describe_rows(table: DataTable, time: str = "", series: str = "") -> list[tuple[str, str]]:
    """Time, step, series, gaps, and where a forecast would cut; columns not named are detected."""
    table.check_columns("series", [series] if series else [])
    time = find_time(table, time, [series] if series else [])
    table = merge_time(table, time)
    series = series or find_series(table, time, [])
    rows = find_rows(table, time, series)
    step, even = find_rows_step(rows)
    counts = [len(places) for places in rows.places.values()]
    times = f"{time or 'the order of rows'}, step {describe_step(step, rows.times.form)}"
    many = f"{min(counts)} to {max(counts)} rows each"
    return [
        ("file", f"{table.name}: {table.form}, {len(table.frame)} rows"),
        ("time", times + ("" if even else ", uneven: each row is a step")),
        ("series", f"{len(counts)}, by {series}: {many}" if series else "1"),
        ("gaps", _describe_gaps(rows, step, even)),
        ("split by time", _describe_cuts(rows, step, even)),
    ]


def _describe_gaps(rows: TimedRows, step: float, even: bool) -> str:
    if not even:
        longest = float(rows.differences().max()) if len(rows.differences()) else step
        return f"the longest is {describe_step(longest, rows.times.form)}"
    lacking = [
        int(round((rows.times.values[p[-1]] - rows.times.values[p[0]]) / step)) + 1 - len(p)
        for p in rows.places.values()
    ]
    series = sum(1 for one in lacking if one)
    return f"{sum(lacking)} steps without a row" + (f", in {series} series" if series else "")


def _describe_cuts(rows: TimedRows, step: float, even: bool) -> str:
    """The borders that the shares give; a horizon longer than a share moves them."""
    values = np.sort(rows.times.values)
    if even:
        held = math.ceil(_SHARE * (round((values[-1] - values[0]) / step) + 1))
        ends = [values[-1] + step * (1 - many * held) for many in (2, 1)]
    else:
        held = math.ceil(_SHARE * len(values))
        ends = [values[max(0, len(values) - many * held)] for many in (2, 1)]
    first, second = (str(format_time(float(end), rows.times.form)) for end in ends)
    return f"training to {first}, validation to {second}, then test"


def _describe_column(table: DataTable, name: str) -> tuple[str, str]:
    """The type of a column, and its values."""
    column = table.frame[name].drop_nulls()
    if not len(column):
        return _EMPTY, ""
    if table.is_number(name) or column.dtype.is_temporal():
        kinds = {True: "numbers", False: "whole numbers"}
        kind = "time" if column.dtype.is_temporal() else kinds[column.dtype.is_float()]
        return kind, f"{_shorten(column.min())} to {_shorten(column.max())}"
    counted = Counter(map(str, column.to_list()))
    often = sorted(counted, key=lambda one: (-counted[one], one))[:_FEW]
    more = ", ..." if len(counted) > _FEW else ""
    return "text", f"{len(counted)} different: {', '.join(map(_shorten, often))}{more}"


def _shorten(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
