"""Whether the rows of a bar meet it."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.memory.protocol import Bar

Row = dict[str, Any]

MOST_CLIPPED = 0.05
"""The share of steps after the hundredth that may be clipped."""


def passed(bar: Bar, rows: list[Row]) -> bool:
    """By the rows at the bar's own rate and length; with the label hidden none may learn."""
    high = all(min(row["errors"]) >= bar.default_above for row in _of(rows, "default"))
    blind = all(min(row["errors"]) > bar.blind_above for row in _of(rows, "leak"))
    return high and blind and all(_meets(bar, rows, row) for row in _of(rows, "ours"))


def free(bar: Bar, rows: list[Row]) -> bool:
    """Bar 9 (iii), first half: ours needs no clipping."""
    return all(_solved(bar, row) for row in _of(rows, "ours unclipped"))


def rare(rows: list[Row]) -> bool:
    """Bar 9 (iii), second half: where ours is clipped, it hardly ever is, on any seed."""
    rates = [rate for row in _of(rows, "ours") for rate in row["clipped"] if rate is not None]
    return max(rates, default=0.0) < MOST_CLIPPED


def _meets(bar: Bar, rows: list[Row], ours: Row) -> bool:
    """What one cell of ours must do, alone and against the other starts."""

    def other(what: str) -> Row:
        return next(row for row in _of(rows, what) if row["cell"] == ours["cell"])

    sooner = bar.sooner is None or statistics.mean(ours["steps"]) <= bar.sooner * statistics.mean(
        other("forget")["steps"]
    )
    beats = bar.beats is None or _better(ours, other("default")) > bar.beats
    return _solved(bar, ours) and sooner and beats


def _better(ours: Row, default: Row) -> float:
    """How much lower the mean error is, in deviations of the seeds: the larger of the two rows."""
    deviation = max(statistics.stdev(row["errors"]) for row in (ours, default))
    gained = statistics.mean(default["errors"]) - statistics.mean(ours["errors"])
    return gained / deviation if deviation else 0.0


def _solved(bar: Bar, row: Row) -> bool:
    return bool(5 * row["solved"] >= bar.ours_of_five * row["seeds"])


def _of(rows: list[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what]
