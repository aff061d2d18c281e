"""Columns that reveal a target before its time, and tests that training has seen: refused.

What a column reveals is measured in the training part: the target is forecast by least squares from
its own lags without and with the column:

    r_0 = mean (y_{t+k} - a . (1, y_t, ..., y_{t-L}))^2
    r_1 = the same with c_t, c_{t-1}, c_{t-2} added to the lags

A column is a leak where r_1 is next to nothing of r_0, or where it is a copy of y_{t+k}, with a
little noise even, that the lags are not. A target that its own lags predict cannot leak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import DataError
from throughtime.tasks.forecast.series import Series
from throughtime.tasks.forecast.windows import Facts
from throughtime.tasks.tables import DataTable, Numbers

_SERIES, _STEPS, _LAGS = 5, 4000, 24
_NOTHING, _COPY, _LIKE, _PART = 1e-3, 0.99999, 0.999, 0.1
_RUN, _RUNS, _WINDOW, _SHARE = 3, 8, 8, 0.5
_MANY, _ODD = 100_000, np.uint64(0x9E3779B97F4A7C15)


def check_leaks(facts: Facts, table: DataTable, series: list[Series], horizon: int) -> None:
    """Refuses a column that reveals a target before its time, and a test that was trained on.

    Raises:
        DataError: names the column and the steps between.
    """
    count = len(facts.targets)
    inside = [one.values[one.times < facts.ends[0]] for one in series[:_SERIES]]
    for number, column in enumerate([*facts.inputs, *facts.known], start=count):
        for place, target in enumerate(facts.targets):
            pairs = [_Pair(part[-_STEPS:, number], part[-_STEPS:, place]) for part in inside]
            leak = _describe_leak(pairs, horizon, column in facts.known)
            if leak:
                raise DataError(
                    f"column {column} of {table.name} must not tell {target}, and it {leak}; "
                    "take that column out of the file"
                )
    for place, target in enumerate(facts.targets):
        _check_repeated(facts, table, series, place, target)


@dataclass(frozen=True)
class _Pair:
    """A column and a target of one series in the training part, (n,) each, NaN where missing."""

    column: Numbers
    target: Numbers


def _describe_leak(pairs: list[_Pair], horizon: int, is_known: bool) -> str:
    """How a column reveals a target, in words; "" where it does not, in one series at least.

    An input is known of the past: it may reveal no later target. A known column is read for the
    future: it may copy no target less than a horizon away.
    """
    for lead in sorted(range(1 - horizon if is_known else 0, horizon + 1), key=abs):
        if all(_is_copy(one, lead) for one in pairs):
            side = "before" if lead > 0 else "after"
            when = f"{abs(lead)} steps {side} its time" if lead else "at its own step"
            return f"copies it {when}"
    lead = _find_leaked_lead(pairs[0], horizon)
    if lead and all(_find_leaked_lead(one, horizon) for one in pairs[1:]):
        return f"tells it {lead} steps before its time, with what was before"
    return "is made of what is seen later in its run" if all(map(_is_total, pairs)) else ""


def _is_copy(pair: _Pair, lead: int) -> bool:
    """Whether the column is, but for scale, sign and rank, the target `lead` steps on.

    Where the target of now is the same, as in a line that rises, likeness proves nothing.
    """
    x, y, now = _shift(pair, lead)
    if len(y) < 8 or not _vary(x, y):
        return False
    likeness = max(_correlate(x, y), _correlate(_rank(x), _rank(y)))
    if likeness < _COPY:
        return False
    return lead == 0 and _correlate(now[1:], now[:-1]) < _COPY or max(
        _correlate(now, y), _correlate(_rank(now), _rank(y))
    ) < _COPY  # fmt: skip


def _shift(pair: _Pair, lead: int) -> tuple[Numbers, Numbers, Numbers]:
    """c_t, y_{t + lead}, and y_t, where all three are there."""
    start, count = max(lead, 0), len(pair.target) - abs(lead)
    x = pair.column[start - lead :][: max(count, 0)]
    now = pair.target[start - lead :][: max(count, 0)]
    y = pair.target[start:][: max(count, 0)]
    seen = np.isfinite(x) & np.isfinite(y) & np.isfinite(now)
    return x[seen], y[seen], now[seen]


def _find_leaked_lead(pair: _Pair, horizon: int) -> int:
    """The fewest steps ahead that column and lags predict, and the lags do not; or 0.

    All leads at once: what the lags leave of y_{t+1}, ... is held against what they leave of the
    column. Where too many values are missing, the first leads alone.
    """
    lags, steps = min(_LAGS, len(pair.target) // 10), len(pair.target)
    for most in (horizon, min(3, horizon)):
        at = np.arange(max(lags, 3) - 1, steps - most)
        if lags < 1 or len(at) < 4 * (lags + 4):
            continue
        lagged = pair.target[at[:, None] - np.arange(lags)]
        column = pair.column[at[:, None] - np.arange(3)]
        later = pair.target[at[:, None] + np.arange(1, most + 1)]
        seen = np.isfinite(np.concatenate([lagged, column, later], 1)).all(1)
        if seen.sum() >= max(4 * (lags + 4), len(at) // 2):
            return _first_leaked(lagged[seen], column[seen], later[seen])
    return 0


def _first_leaked(lagged: Numbers, column: Numbers, later: Numbers) -> int:
    """The place, from 1, of the first of `later` that the column predicts; or 0."""
    basis = np.linalg.qr(np.concatenate([np.ones((len(lagged), 1)), lagged], 1))[0]
    rest, left = (values - basis @ (basis.T @ values) for values in (column, later))
    without = np.square(left).mean(0)
    scale = np.sqrt(np.square(rest).sum(0))
    new = rest[:, scale > 1e-9 * np.sqrt(np.square(column).sum(0))]  # what the lags do not say
    if not new.shape[1]:
        return 0
    more = np.linalg.qr(new)[0]
    with_column = np.square(left - more @ (more.T @ left)).mean(0)
    alike = np.array([_correlate(column[:, 0], y) for y in later.T])
    secret = without > 1e-6 * later.var(0)
    leaked = (alike > _LIKE) & (with_column < _PART * without)
    leaked = secret & (leaked | (with_column < _NOTHING * without))
    return int(np.argmax(leaked)) + 1 if leaked.any() else 0


def _is_total(pair: _Pair) -> bool:
    """Whether the column stays, run by run, at the sum, mean, most, least or last of the target.

    As a day's total would, repeated for each of its hours.
    """
    seen = np.isfinite(pair.column) & np.isfinite(pair.target)
    column, target = pair.column[seen], pair.target[seen]
    borders = np.flatnonzero(np.diff(column)) + 1
    runs = np.split(target, borders)[1:-1]  # the first and the last may be cut
    values = column[borders[:-1]] if len(borders) else column[:0]
    if len(runs) < _RUNS or np.median([len(run) for run in runs]) < _RUN or not _vary(values):
        return False
    for whole in (np.sum, np.mean, np.max, np.min, lambda run: run[-1]):
        totals = np.array([float(whole(run)) for run in runs])
        if _vary(totals) and _correlate(totals, values) > _COPY:
            first = np.array([float(run[0]) for run in runs])
            return not _vary(first) or _correlate(first, values) < _COPY
    return False


def _check_repeated(
    facts: Facts, table: DataTable, series: list[Series], place: int, target: str
) -> None:
    """Refuses a test part whose values repeat, step after step, those of the training part.

    A target that repeats itself within the training part, a pure cycle say, is none.
    """
    parts = [(one.values[:, place], one.times) for one in series]
    trained = [_hash_windows(values[times < facts.ends[0]]) for values, times in parts]
    tests = [_hash_windows(values[times >= facts.ends[1]]) for values, times in parts]
    tested = np.concatenate(tests)
    again = int(np.isin(tested, np.concatenate(trained)).sum())
    if len(tested) < _WINDOW or again < _SHARE * len(tested):
        return
    halves = [(train[: len(train) // 2], train[len(train) // 2 + _WINDOW :]) for train in trained]
    within = sum(int(np.isin(second, first).sum()) for first, second in halves)
    if within < 0.1 * sum(len(second) for _, second in halves):
        raise DataError(
            f"the test part of {table.name} must be new, and column {target} repeats there, step "
            f"after step, what stands in the training part ({again} of {len(tested)} runs of "
            f"{_WINDOW} steps); take the copy out"
        )


def _hash_windows(values: Numbers) -> NDArray[np.uint64]:
    """A hash of each run of eight values without a gap, at least half of them different."""
    count = len(values) - _WINDOW + 1
    parts = [_hash_runs(values[at : at + _MANY + _WINDOW - 1]) for at in range(0, count, _MANY)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _hash_runs(values: Numbers) -> NDArray[np.uint64]:
    runs = np.lib.stride_tricks.sliding_window_view(values + 0.0, _WINDOW)  # -0.0 is 0.0
    runs = runs[np.isfinite(runs).all(1)]
    different = 1 + (np.diff(np.sort(runs, 1), axis=1) != 0).sum(1)
    varied = np.ascontiguousarray(runs[different > _WINDOW // 2]).view(np.uint64)
    hashes = np.zeros(len(varied), np.uint64)
    for column in varied.T:  # a hash of 64 bits, mixed after each value
        hashes = (hashes ^ column) * _ODD
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _vary(*parts: Numbers) -> bool:
    return all(len(part) > 1 and float(np.ptp(part)) > 0 for part in parts)


def _correlate(x: Numbers, y: Numbers) -> float:
    """The correlation's size; 0 where one does not vary."""
    return abs(float(np.corrcoef(x, y)[0, 1])) if _vary(x, y) else 0.0


def _rank(values: Numbers) -> Numbers:
    """The place of each value among all; equal ones share theirs."""
    _, number = np.unique(values, return_inverse=True)
    places: NDArray[np.float64] = number.astype(np.float64)
    return places
