"""The rows of a table as series of even steps, with gaps where nothing was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import DataError
from throughtime.tasks.tables import DataTable, Numbers
from throughtime.tasks.tables.clock import MONTHS, NUMBER, Times, find_step, read_times

if TYPE_CHECKING:
    import polars as pl

_DAY = 86400.0
_CYCLES = (_DAY, 7 * _DAY, 365.2425 * _DAY)
_PARTS = ("year", "quarter", "month", "week", "weekday", "day", "hour", "minute")
_FOLLOWS = (1.0, 0.7, 0.5, 0.35, 0.25)
_SERIES, _STEPS, _MOST_STEPS = 20, 20_000, 60_000  # that a season is looked for in
_NEAR = 8
_CLEAR = (0.6, 0.5)  # of a calendar's share, that another is better by; that a multiple of it is


@dataclass
class Series:
    """One series; missing values are NaN.

    Attributes:
        name: its value in the column of series, "" where there is only one.
        times: (n,) of its steps.
        values: (n, targets + inputs + known).
        seen: how many of its steps the table has.
    """

    name: str
    times: Numbers
    values: Numbers
    seen: int

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class TimedRows:
    """The rows of each series, in the order of their time."""

    places: dict[str, NDArray[np.int64]]
    times: Times

    def differences(self) -> Numbers:
        """Between times that follow each other in a series."""
        parts = [np.diff(self.times.values[rows]) for rows in self.places.values()]
        return np.concatenate(parts) if parts else np.zeros(0)


def find_rows(table: DataTable, time: str, series: str) -> TimedRows:
    """The rows of every series, sorted by time.

    Raises:
        DataError: a series has one time twice; names both rows.
    """
    count = len(table.frame)
    times = read_times(table, time) if time else Times(np.arange(count, dtype=np.float64), "")
    names, numbers = table.groups(series) if series else ([""], np.zeros(count, np.int64))
    order = _order_rows(numbers, times.values) if time else np.argsort(numbers, kind="stable")
    borders = np.searchsorted(numbers[order], np.arange(1, len(names)))
    places = dict(zip(names, np.split(order, borders), strict=True))
    if not time:  # every series counts its own steps
        for rows in places.values():
            times.values[rows] = np.arange(len(rows))
    for name, rows in places.items():
        same = (np.diff(times.values[rows]) == 0).nonzero()[0]
        if len(same):
            first, second = int(rows[same[0]]), int(rows[same[0] + 1])
            raise DataError(
                f"a time must stand once{f' in series {name}' if series else ''}, and column "
                f"{time} has {table.frame[time][first]} in {table.place(first)} and in "
                f"{table.place(second)}; take one out"
                + (
                    ""
                    if series
                    else ", or name the column of series with --series, or all columns "
                    "of the time with --time, year,month say"
                )
            )
    return TimedRows(places, times)


def _order_rows(numbers: NDArray[np.int64], times: Numbers) -> NDArray[np.int64]:
    """The rows by series and time; most files have them so."""
    after = np.diff(numbers)
    if bool(((after > 0) | ((after == 0) & (np.diff(times) >= 0))).all()):
        return np.arange(len(numbers))
    return np.lexsort((times, numbers))


def find_series(table: DataTable, time: str, taken: list[str]) -> str:
    """The column that tells series apart: with it no time occurs twice; "" where none does.

    A column of numbers is one only where times repeat about as often as it has values: a
    measurement beside a time that occurs twice by mistake is none.
    """
    frame = table.frame
    if not time or not frame[time].is_duplicated().any():
        return ""
    for column in frame.columns:
        usable = column not in (time, *taken) and column.casefold() not in _PARTS
        if usable and not frame[column].dtype.is_float():
            groups = frame[column].n_unique()
            enough = frame[column].null_count() == 0 and groups <= len(frame) // 2
            often = len(frame) / frame[time].n_unique()
            enough = enough and (not table.is_number(column) or often >= max(1.5, groups / 4))
            if enough and _is_unique(frame, [time, column]):
                return column
    return ""


def _is_unique(frame: pl.DataFrame, columns: list[str]) -> bool:
    """Whether no two rows have the same there; of many rows a hash is enough."""
    few = frame.select(columns)
    if few.head(_STEPS).is_duplicated().any():
        return False
    return len(few) <= _STEPS or few.hash_rows().n_unique() == len(few)


def find_rows_step(rows: TimedRows) -> tuple[float, bool]:
    """The step of all series, and whether their times are whole multiples of it."""
    return find_step(rows.differences())


def make_series(
    table: DataTable, rows: TimedRows, columns: list[str], step: float, even: bool
) -> list[Series]:
    """Every series on its own steps; where times are uneven, each row is a step."""
    whole = np.stack([table.numbers(column) for column in columns], 1)
    made = []
    for name, places in rows.places.items():
        times, values = rows.times.values[places], whole[places]
        at = np.round((times - times[0]) / step).astype(np.int64) if even else np.arange(len(times))
        if at[-1] >= len(times):
            spread = np.full((at[-1] + 1, values.shape[1]), np.nan)
            spread[at] = values
            values, times = spread, times[0] + step * np.arange(at[-1] + 1)
        made.append(Series(name, times, values, len(places)))
    return made


def find_periods(form: str, step: float, spans: list[float]) -> list[float]:
    """Cycles of the calendar, in seconds, that the longest series has at least twice."""
    if form in (NUMBER, "") or form.startswith(MONTHS):
        return []
    return [cycle for cycle in _CYCLES if 2 * step < cycle and 2 * cycle <= max(spans)]


def find_calendar_lags(form: str, step: float, even: bool) -> list[int]:
    """Steps after which the calendar begins again: a day, a week, a year."""
    if not even or form in (NUMBER, ""):
        return []
    cycles = (12.0,) if form.startswith(MONTHS) else _CYCLES
    lags = [round(cycle / step) for cycle in cycles]
    near = [abs(lag * step / cycle - 1) < 0.01 for lag, cycle in zip(lags, cycles, strict=True)]
    return [lag for lag, fits in zip(lags, near, strict=True) if lag > 1 and fits]


def find_season(
    series: list[Series], ends: list[float], longest: int, calendar: Sequence[int] = ()
) -> int:
    """The season of the first target in the training part, in steps, or 1.

    For each m, the means by step of season of what an average over m steps leaves, each season of
    one size, and the share u of its variance that they leave, as if without bias. A season
    is where u is below 0.75, and below 1 by 4 deviations that u has by chance; for a lag of the
    calendar 0.85 and 2.5; 2 is one of the calendar or none, since noise less its average
    alternates. It is the first whose u is near the least; one of the calendar, unless another, not
    beside it, is clearly better.

    Args:
        series, ends: what is learned from, and where the training part ends.
        longest: steps; three of a season must be there.
        calendar: as `find_calendar_lags` gives them.
    """
    parts = _complete_parts(series, ends)
    longest = min(longest, max(map(len, parts), default=0) // 3)
    unexplained = {}
    for lag in range(2 if 2 in calendar else 3, longest + 1):
        most, deviations = (0.85, 2.5) if lag in calendar else (0.75, 4.0)
        share, chance = _unexplained_share(parts, lag, most)
        if share < most and share < 1 - deviations * chance:
            unexplained[lag] = share
    usual = {lag: unexplained[lag] for lag in calendar if lag in unexplained}
    if not unexplained:
        return 1
    least, first = _find_lowest(unexplained)
    if not usual:
        return first
    known, lag = _find_lowest(usual)
    close = abs(first - lag) <= lag // 8
    return lag if close or least > _CLEAR[first % lag == 0] * known else first


def _find_lowest(unexplained: dict[int, float]) -> tuple[float, int]:
    """The least share, and the first lag whose share is near it."""
    least = min(unexplained.values())
    return least, next(lag for lag in sorted(unexplained) if unexplained[lag] <= 1.1 * least + 0.01)


def _complete_parts(series: list[Series], ends: list[float]) -> list[Numbers]:
    """The first target of some training parts, what is missing on the line between neighbours."""
    parts: list[Numbers] = []
    for one in series[:_SERIES]:
        part = one.values[one.times < ends[0], 0][-_STEPS:]
        if np.isfinite(part).any() and sum(map(len, parts)) < _MOST_STEPS:
            parts.append(interpolate(part))
    return parts


def _unexplained_share(parts: list[Numbers], lag: int, most: float) -> tuple[float, float]:
    """Share of the variance that means by step of season leave, and its deviation by chance.

    Both are of the parts that have three seasons. The deviation, computed where the share is below
    `most`, allows for the correlation that is left between the steps of a season.
    """
    left = freedom = count = 0.0
    rests = []
    for part in parts:
        if len(part) < 3 * lag:
            continue
        whole = _remove_average(part, lag)
        rest = whole - whole.mean(0)
        variance = float(whole.var())
        left += whole.size * (float((rest**2).mean()) / variance if variance else 1.0)
        count += whole.size
        freedom += lag
        rests.append(rest.ravel())
    if count <= freedom:
        return 1.0, 1.0
    share = left / (count - freedom)
    if share >= most:
        return share, 1.0
    steps = max(map(_count_correlated, rests, [lag] * len(rests)))
    return share, float(np.sqrt(2 * freedom * steps / ((count - freedom) * count)))


def _remove_average(part: Numbers, lag: int) -> Numbers:
    """Whole seasons (n, lag), the last ones, of a part less its average over a season around."""
    sums = np.concatenate([[0.0], np.cumsum(part - part.mean())])
    average = (sums[lag:] - sums[:-lag]) / lag
    if lag % 2 == 0:  # an even number of steps has its middle between two
        average = (average[1:] + average[:-1]) / 2
    begin = lag // 2
    bare = part[begin : begin + len(average)] - part.mean() - average
    seasons = bare[len(bare) % lag :].reshape(-1, lag)
    sizes = np.sqrt((seasons**2).mean(1, keepdims=True))
    return np.asarray(seasons / np.where(sizes > 1e-9 * part.std(), sizes, np.inf))


def _count_correlated(rest: Numbers, lag: int) -> float:
    """How many steps count as one: 1 + 2 times the sum of squared correlations."""
    power = np.abs(np.fft.rfft(rest - rest.mean(), 2 * len(rest))) ** 2
    products = np.fft.irfft(power)[: max(lag // 2, _NEAR) + 1]
    if products[0] <= 0:
        return 1.0
    return 1 + 2 * float(((products[1:] / products[0]) ** 2).sum())


def find_follow(series: list[Series], ends: list[float], season: int, targets: int) -> float:
    """How far to follow what was seen a season before: what misses the training part least."""
    if season < 2:
        return 1.0
    missed = dict.fromkeys(_FOLLOWS, 0.0)
    for one in series[:_SERIES]:
        values = one.values[one.times < ends[0], :targets][-_STEPS:]
        if len(values) > season and np.isfinite(values).any(0).all():
            scale = np.nanstd(values, 0)
            for follow in _FOLLOWS:
                errors = np.abs(values - usual_values(values, season, follow))[season:]
                missed[follow] += float(np.nansum(errors / np.where(scale > 0, scale, 1)))
    return min(_FOLLOWS, key=missed.__getitem__)


def usual_values(values: Numbers, season: int, follow: float) -> Numbers:
    """What is usual at each step, of what was seen at the same step of the seasons before.

    u_{t+m} = u_t + follow (v_t - u_t), u_t = v_t in the first season. Where v_t is missing, v - u
    is on the line between those seen in the same season.

    Args:
        values: (n, D) v, NaN where it is missing; m: the season.
    """
    if not np.isfinite(values).all():
        return _usual_across_gaps(values, season, follow)
    count = len(values)
    seasons = -(-count // season)
    whole = np.zeros((seasons * season, values.shape[1]))
    whole[:count] = values
    mixed = whole.reshape(seasons, season, -1)
    first = mixed[:1].copy()
    mixed[1:] *= follow
    rest, shift = 1 - follow, 1
    while shift < seasons and rest > 1e-9:  # the sum over all seasons before, by doubling
        mixed[shift:] += rest * mixed[:-shift]
        rest, shift = rest * rest, 2 * shift
    return np.concatenate([first, mixed[:-1]]).reshape(len(whole), -1)[:count]


def _usual_across_gaps(values: Numbers, season: int, follow: float) -> Numbers:
    usual = np.zeros((len(values) + 2 * season, values.shape[1]))
    usual[:season] = np.stack([interpolate(column) for column in _pad_season(values, season).T], 1)
    usual[season : 2 * season] = usual[:season]
    for begin in range(season, len(values), season):
        now = usual[begin : begin + season]
        apart = _pad_season(values[begin:], season) - now
        lines = np.stack([interpolate(column) for column in apart.T], 1)
        usual[begin + season : begin + 2 * season] = now + follow * lines
    return usual[: len(values)]


def _pad_season(values: Numbers, season: int) -> Numbers:
    """The first season, with NaN after the end."""
    rest = np.full((max(0, season - len(values)), values.shape[1]), np.nan)
    return np.concatenate([values[:season], rest])


def interpolate(values: Numbers) -> Numbers:
    """Numbers (n,) with those that are missing on the line between their neighbours; or all 0."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.zeros(len(values))
    return np.interp(np.arange(len(values)), known, values[known])
