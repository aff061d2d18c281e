"""The band goes on following what comes: where too much lies outside it widens, else it narrows.

    q <- q + r w ([s > q_then] - 0.2),   s = max(lower - y, y - upper)

for each step ahead by itself, whenever the truth y of an earlier forecast has come; q_then is the q
of that forecast, w half its width, and the band that is said goes from lower - q to upper + q. So
of what is forecast one after another a fifth lies outside in the long run, whatever the forecasts
are; nothing that comes after a forecast has a part in its band. r is small where forecasts overlap.

Source: Gibbs and Candes, Adaptive Conformal Inference Under Distribution Shift (2021), as a tracked
quantile: Angelopoulos, Candes and Tibshirani, Conformal PID Control for Time Series Prediction
(2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.tasks.forecast.model import MEDIAN, QUANTILES

_RATE = 0.05  # of half the width, at most
_OUTSIDE = 1 - (QUANTILES[-1] - QUANTILES[0])


def follow_band(answers: Tensor, truth: Tensor, origins: Tensor, series: Tensor) -> Tensor:
    """Quantiles with the band that what came before each forecast asks for.

    Args:
        answers: (horizon, B, D, 3) in their order.
        truth: (horizon, B, D), NaN where it is missing.
        origins: (B,) the first step ahead of each, in their order.
        series: (B,) the series of each.
    """
    followed = answers.clone()
    for number in series.unique():
        own = (series == number).nonzero()[:, 0]
        wider = _widened(answers[:, own], truth[:, own], origins[own])
        followed[:, own, :, 0] -= wider
        followed[:, own, :, -1] += wider
    middle = answers[..., MEDIAN]
    followed[..., 0] = torch.minimum(followed[..., 0], middle)
    followed[..., -1] = torch.maximum(followed[..., -1], middle)
    return followed


def _widened(answers: Tensor, truth: Tensor, origins: Tensor) -> Tensor:
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
