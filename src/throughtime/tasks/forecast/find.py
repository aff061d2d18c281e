"""The facts in a table for a forecast: roles of columns, step, season, scales; and what is wrong.

A table made here too, so that the task runs with no file.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from throughtime.errors import DataError
from throughtime.tasks.forecast.leaks import check_leaks
from throughtime.tasks.forecast.series import (
    Series,
    TimedRows,
    find_calendar_lags,
    find_follow,
    find_periods,
    find_rows,
    find_rows_step,
    find_season,
    find_series,
    make_series,
)
from throughtime.tasks.forecast.windows import Facts, ForecastRecipe
from throughtime.tasks.recipe import check_unchanged
from throughtime.tasks.tables import DataTable, Numbers, check_roles, split_names
from throughtime.tasks.tables.clock import (
    describe_step,
    find_time,
    format_time,
    merge_time,
    time_columns,
)
from throughtime.tasks.tables.read import read
from throughtime.tasks.tables.task import BUILTIN, hash_data

_LONGEST = 750  # steps of a season that is looked for, and of a history without --length


def read_source(recipe: ForecastRecipe) -> DataTable:
    return make_builtin() if recipe.data == BUILTIN else read(recipe.data)


def find_facts(recipe: ForecastRecipe) -> Facts:
    """The facts in the file of a recipe.

    Raises:
        DataError: the file cannot be learned from; names file, row and column.
    """
    table = read_source(recipe)
    targets, known, time = _find_roles(recipe, table)
    table = merge_time(table, time)
    facts, rows = _find_inputs(recipe, table, targets, known, time)
    series = make_series(table, rows, list_columns(facts), facts.step, facts.even)
    _made[:] = [(_series_key(facts), series)]
    _check_targets(table, facts, series)
    ends = _find_ends(recipe, table, facts, series)
    facts = replace(facts, ends=ends)
    calendar = find_calendar_lags(facts.form, facts.step, facts.even)
    season = find_season(series, ends, _LONGEST, calendar)
    follow = find_follow(series, ends, season, len(facts.targets))
    facts = replace(facts, season=season, follow=follow)
    facts = replace(facts, length=_find_length(recipe, facts, series))
    facts = _find_scales(facts, table, series)
    facts = replace(facts, masked=_find_masked(facts, series))
    check_leaks(facts, table, series, recipe.horizon)
    return replace(facts, read=_describe(recipe, table, facts, series))


_made: list[tuple[Facts, list[Series]]] = []  # the last series, wanted again at once


def _series_key(facts: Facts) -> Facts:
    """What the series of a file depend on."""
    return Facts(
        digest=facts.digest, time=facts.time, series=facts.series, form="",
        step=facts.step, even=facts.even, targets=facts.targets, inputs=facts.inputs,
        known=facts.known, periods=[],
    )  # fmt: skip


def read_series(recipe: ForecastRecipe, facts: Facts) -> list[Series]:
    """The series of the file of a recipe; read once where its facts were just found.

    Raises:
        DataError: the file is another one than when the run began.
    """
    check_unchanged(recipe.data, hash_data(recipe.data), facts.digest)
    while _made:
        key, series = _made.pop()
        if key == _series_key(facts):
            return series
    table = merge_time(read_source(recipe), facts.time)
    rows = find_rows(table, facts.time, facts.series)
    return make_series(table, rows, list_columns(facts), facts.step, facts.even)


def format_border(facts: Facts, end: float) -> str | float:
    """The first step of a part; where steps are even, `ends` are half a step before it."""
    return format_time(end + (facts.step / 2 if facts.even else 0), facts.form)


def list_columns(facts: Facts) -> list[str]:
    """Every column that is read as numbers, in the order of a series' values."""
    return [*facts.targets, *facts.inputs, *facts.known]


def _find_roles(recipe: ForecastRecipe, table: DataTable) -> tuple[list[str], list[str], str]:
    """The columns of targets, what is known ahead, and time: named by options or detected."""
    targets, known = split_names(recipe.target), split_names(recipe.known)
    if recipe.data == BUILTIN:
        targets, known = targets or ["load"], known or ["holiday"]
    table.check_role("a forecast needs", "target", ",".join(targets))
    table.check_columns("target", targets)
    table.check_columns("known", known)
    time = find_time(table, recipe.time, [*targets, *known, recipe.series])
    if recipe.series:
        table.check_columns("series", [recipe.series])
    check_roles([
        ("target", targets), ("known", known), ("time", time_columns(table, time)),
        ("series", [recipe.series] if recipe.series else []),
    ])  # fmt: skip
    return targets, known, time


def _find_inputs(
    recipe: ForecastRecipe, table: DataTable, targets: list[str], known: list[str], time: str
) -> tuple[Facts, TimedRows]:
    series = recipe.series or find_series(table, time, [*targets, *known])
    rows = find_rows(table, time, series)
    step, even = find_rows_step(rows)
    used = {*targets, *known, time, series}
    inputs = [c for c in table.frame.columns if c not in used and _varies(table, c)]
    spans = [float(np.ptp(rows.times.values[places])) for places in rows.places.values()]
    return Facts(
        digest=hash_data(recipe.data), time=time, series=series, form=rows.times.form,
        step=step, even=even, targets=targets, inputs=inputs, known=known,
        periods=find_periods(rows.times.form, step, spans),
    ), rows  # fmt: skip


def _varies(table: DataTable, column: str) -> bool:
    values = table.frame[column]
    return table.is_number(column) and values.min() != values.max()


def _check_targets(table: DataTable, facts: Facts, series: list[Series]) -> None:
    for place, target in enumerate(facts.targets):
        values = np.concatenate([one.values[:, place] for one in series])
        seen = values[np.isfinite(values)]
        if not len(seen):
            raise DataError(
                f"column {target} of {table.name} must have values to forecast, and all "
                f"{len(table.frame)} rows are empty there"
            )
        if seen.min() == seen.max():
            raise DataError(
                f"column {target} of {table.name} must vary to be forecast, and it is "
                f"{seen[0]:g} in every row, from {table.unit} {table.first} on"
            )


def _find_ends(
    recipe: ForecastRecipe, table: DataTable, facts: Facts, series: list[Series]
) -> list[float]:
    """Where validation and test begin, at the same time in all series.

    The last steps are the test, as many as the share says and at least one horizon.
    """
    least = 4 * recipe.horizon
    for one in series:
        if len(one) < least:
            name = f"series {one.name}" if facts.series else "the series"
            cures = [f"give a --horizon of at most {len(one) // 4}"] if len(one) >= 4 else []
            cures += ["take the series out"] if facts.series else []
            raise DataError(
                f"{name} of {table.name} must have at least 4 horizons, {least} steps, and it has "
                f"{len(one)}, in {one.seen} rows; {', or '.join(cures) or 'add rows'}"
            )
    first = min(float(one.times[0]) for one in series)
    last = max(float(one.times[-1]) for one in series)
    if facts.even:
        count = round((last - first) / facts.step) + 1
        held = _count_held_out(recipe, count, recipe.horizon)
        return [last + facts.step * (0.5 - many) for many in held]
    every = np.sort(np.concatenate([one.times for one in series]))
    held = _count_held_out(recipe, len(every), recipe.horizon * len(series))
    return [float(every[-many]) for many in held]


def _count_held_out(recipe: ForecastRecipe, count: int, least: int) -> list[int]:
    """Steps from where validation begins and from where the test begins, to the end."""
    test = max(least, math.ceil(recipe.held_out * count))
    share = recipe.validation or recipe.held_out
    return [test + max(least, math.ceil(share * count)), test]


def _find_length(recipe: ForecastRecipe, facts: Facts, series: list[Series]) -> int:
    """Steps of history: as given, or two horizons and a season, as far as training has them."""
    train = max(int((one.times < facts.ends[0]).sum()) for one in series)
    room = train - recipe.horizon
    if recipe.length > room:
        raise DataError(
            f"length must leave room for a horizon in the training part of {train} steps, so be "
            f"at most {max(room, 0)}, got {recipe.length}; make it smaller"
        )
    usual = max(2 * recipe.horizon, facts.season, 8)
    return recipe.length or max(1, min(usual, _LONGEST, max(room // 2, min(room, facts.season))))


def _find_scales(facts: Facts, table: DataTable, series: list[Series]) -> Facts:
    """The facts with mean and deviation of every column in the training part."""
    parts = {one.name: one.values[one.times < facts.ends[0]] for one in series}
    whole = _measure_scale(np.concatenate(list(parts.values())))
    for place, target in enumerate(facts.targets):
        if whole[1][place] == 0 or math.isnan(whole[0][place]):
            raise DataError(
                f"column {target} of {table.name} must vary in the training part, the rows before "
                f"{format_border(facts, facts.ends[0])}, and it does not; give more rows, or a "
                "smaller --held-out"
            )
    whole = _usable_scale(whole, whole)
    scales = {name: _usable_scale(_measure_scale(part), whole) for name, part in parts.items()}
    return replace(facts, scales=scales, whole=whole)


def _find_masked(facts: Facts, series: list[Series]) -> list[str]:
    """The inputs that miss values in the training part."""
    first = len(facts.targets)
    parts = [one.values[one.times < facts.ends[0], first:] for one in series]
    complete = np.all([np.isfinite(part).all(0) for part in parts], 0)
    return [name for name, whole in zip(facts.inputs, complete, strict=False) if not whole]


def _measure_scale(values: Numbers) -> list[list[float]]:
    counts = np.isfinite(values).sum(0)
    filled = np.nan_to_num(values)
    means = np.where(counts, filled.sum(0) / np.maximum(counts, 1), np.nan)
    squares = np.where(np.isfinite(values), (values - means) ** 2, 0).sum(0)
    return [means.tolist(), np.sqrt(squares / np.maximum(counts, 1)).tolist()]


def _usable_scale(scale: list[list[float]], whole: list[list[float]]) -> list[list[float]]:
    """The scale, of all series where one has no values, with 1 in place of no deviation."""
    pairs = [
        (m, d) if math.isfinite(m) else (w, e)
        for m, d, w, e in zip(*scale, *whole, strict=True)
    ]  # fmt: skip
    return [
        [m if math.isfinite(m) else 0.0 for m, _ in pairs],
        [d if d > 1e-9 * abs(m) and math.isfinite(m) else 1.0 for m, d in pairs],
    ]


def _describe(
    recipe: ForecastRecipe, table: DataTable, facts: Facts, series: list[Series]
) -> list[list[str]]:
    steps = sum(len(one) for one in series)
    seen = sum(one.seen for one in series)
    missing = {c: table.frame[c].null_count() for c in list_columns(facts)}
    empty = ", ".join(f"{count} of {name}" for name, count in missing.items() if count)
    used = [*list_columns(facts), facts.time, facts.series]
    left = [c for c in table.frame.columns if c not in used]
    even = "" if facts.even else ", uneven: each row is a step"
    cuts = [str(format_border(facts, end)) for end in facts.ends]
    return [
        ["file", f"{recipe.data}: {table.form}, {len(table.frame)} rows"],
        ["time", f"{facts.time or 'the order of rows'}, step "
                 f"{describe_step(facts.step, facts.form)}{even}"
                 + (f", written as {facts.form}" if "%" in facts.form else "")],
        ["series", f"{len(series)}, by {facts.series}" if facts.series else "1"],
        ["target", ", ".join(facts.targets)],
        ["inputs", ", ".join(facts.inputs) or "none beside the target"],
        ["known ahead", ", ".join([*facts.known, *_name_cycles(facts)]) or "nothing"],
        ["left out", ", ".join(left) or "nothing"],
        ["missing", f"{steps - seen} steps without a row; values: {empty or 'none'}"],
        ["season", f"{facts.season} steps" if facts.season > 1 else "none found"],
        ["reads", f"{facts.length} steps, forecasts {recipe.horizon}"],
        ["split by time", f"training to {cuts[0]}, validation to {cuts[1]}, then test"],
    ]  # fmt: skip


def _name_cycles(facts: Facts) -> list[str]:
    names = {86400.0: "hour of the day", 604800.0: "day of the week"}
    return [names.get(period, "day of the year") for period in facts.periods]


_STEPS = 24 * 7 * 8


def make_builtin() -> DataTable:
    """What a town and a village use in eight weeks, hour by hour.

    A day's and a week's cycle, holidays, a slow drift, noise.
    """
    from datetime import datetime, timedelta

    import polars as pl

    generator = np.random.default_rng(7)
    hours, begin = np.arange(_STEPS), datetime(2025, 1, 6)
    day, week = 2 * np.pi * hours / 24, hours // 24 % 7
    parts = []
    for place, size in (("town", 40.0), ("village", 6.0)):
        holiday = np.repeat(generator.random(_STEPS // 24) < 0.1, 24)
        drift = np.zeros(_STEPS)
        for step in range(1, _STEPS):
            drift[step] = 0.97 * drift[step - 1] + 0.06 * generator.standard_normal()
        calm = np.where((week >= 5) | holiday, 0.6, 1.0)
        load = 2 + calm * (0.8 * np.sin(day - 2) + 0.4 * np.sin(2 * day)) + drift
        parts.append(
            pl.DataFrame({
                "time": [begin + timedelta(hours=int(hour)) for hour in hours],
                "place": [place] * _STEPS,
                "holiday": holiday.astype(np.int64),
                "load": np.round(size * load + 0.02 * size * generator.standard_normal(_STEPS), 3),
            })
        )  # fmt: skip
    return DataTable(pl.concat(parts), "builtin", "made here")
