"""Medians, quartiles, and the ratio of two contenders."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and the quartiles around it."""
    if len(values) == 1:
        return dict.fromkeys(("median", "q1", "q3"), values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Theirs over ours: the ratio of the medians, and the quartiles of the ratios turn by turn."""
    turns = quartiles([a / b for a, b in zip(theirs, ours, strict=True)])
    middle = statistics.median(theirs) / statistics.median(ours)
    return {"ratio": middle, "q1": turns["q1"], "q3": turns["q3"]}


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(statistics.fmean(map(math.log, values)))
