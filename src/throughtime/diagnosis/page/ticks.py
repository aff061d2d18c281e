"""Ticks of an axis that counts in powers of ten."""

from __future__ import annotations

import math
from typing import Any

FEW, MOST = 3, 7
"""Ticks that an axis has at least, and powers of ten that it has at most."""


def powers(low: float, high: float, *, logs: bool = False) -> dict[str, list[Any]]:
    """Each power of ten around two numbers; its multiples too where there are few.

    Args:
        low: the least number of the axis, above 0.
        high: the greatest.
        logs: the axis is of the numbers' logarithms.

    Returns:
        `tickvals` and `ticktext` of plotly's axes.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, -(-(last - first) // MOST))
    for multiples in (range(1, 2), (1, 2, 5), range(1, 10)):
        places = [(m, d) for d in range(first, last + 1, step) for m in multiples]
        if sum(low <= m * 10.0**d <= high for m, d in places) >= FEW:
            break
    at = [m * 10.0**d for m, d in places]
    return {
        "tickvals": [math.log10(v) for v in at] if logs else at,
        "ticktext": [_words(m, d) for m, d in places],
    }


def _words(times: int, power: int) -> str:
    """A number as one writes it; far from 1 as a power."""
    if -4 < power < 5:
        return f"{times * 10.0**power:g}"
    return f"{'' if times == 1 else f'{times}·'}10<sup>{power}</sup>"
