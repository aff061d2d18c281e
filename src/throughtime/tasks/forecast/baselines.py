"""Forecasts that need no net: the last value, the value a season before, a line through lags.

Each has the quantiles of its own errors on the training windows around it, for every step ahead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from throughtime.tasks.forecast.model import QUANTILES, before, lag_features, lags_read
from throughtime.tasks.forecast.windows import Windows

Point = Callable[[Tensor], Tensor]  # targets (T, B, D) -> forecasts (horizon, B, D)
_MOST = 4000  # windows of the training part that are fitted
_RIDGES = (1e-3, 1e-1, 1e1, 1e3)


def make_baselines(windows: Windows) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> from targets of histories (T, B, D) to quantiles (horizon, B, D, 3)."""
    horizon, season = windows.horizon, windows.facts.season
    train = windows.origins["train"]
    train = train[:: max(1, -(-len(train) // _MOST))]
    points: dict[str, Point] = {"persistence": lambda past: before(past, horizon, 1)}
    if season > 1:
        points["seasonal naive"] = lambda past: before(past, horizon, season)
    line = fit_line(windows)
    points["linear on lags"] = lambda past: _ahead(past, line)
    past, truth = _targets(windows, train)
    return {name: _with_quantiles(point, past, truth) for name, point in points.items()}


def _targets(windows: Windows, origins: Tensor) -> tuple[Tensor, Tensor]:
    return windows.past(origins).double(), windows.cut(origins)[1].double()


def _with_quantiles(point: Point, past: Tensor, truth: Tensor) -> Callable[[Tensor], Tensor]:
    """A point forecast with the quantiles of its errors on these windows; the middle stays it."""
    errors = truth - point(past)  # (horizon, B, D)
    levels = torch.tensor(QUANTILES, dtype=errors.dtype)
    spread = torch.nanquantile(errors, levels, dim=1)  # (3, horizon, D)
    spread[len(QUANTILES) // 2] = 0
    around = spread.nan_to_num().movedim(0, -1)[:, None]
    return lambda targets: point(targets.double())[..., None] + around


def fit_line(windows: Windows) -> Tensor:
    """Ridge regression of all horizons on the lags, as differences from the last value.

    Its ridge is the one of four that forecasts the validation windows best; what is missing of the
    truth is left out.

    Returns:
        Weights (1 + lags D, horizon D) of `lag_features`.
    """
    train = windows.origins["train"]
    past, truth = _targets(windows, train[:: max(1, -(-len(train) // _MOST))])
    other, later = _targets(windows, windows.few("validation"))
    fits = _fits(past, truth)
    errors = [float((later - _ahead(other, fit)).abs().nanmean()) for fit in fits]
    return fits[min(range(len(fits)), key=errors.__getitem__)]


def _fits(past: Tensor, truth: Tensor) -> list[Tensor]:
    """The weights by each ridge."""
    x = lag_features(past, lags_read(len(past), past.shape[-1]))
    y = (truth - past[-1]).movedim(0, 1).flatten(1)
    one = torch.eye(x.shape[1], dtype=x.dtype)
    if torch.isfinite(y).all():
        square, beside = x.T @ x, x.T @ y
        return [torch.linalg.solve(square + ridge * one, beside) for ridge in _RIDGES]
    found = [torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype) for _ in _RIDGES]
    for column in range(y.shape[1]):
        seen = torch.isfinite(y[:, column])
        there = x[seen]
        square, beside = there.T @ there, there.T @ y[seen, column]
        for fit, ridge in zip(found, _RIDGES, strict=True):
            fit[:, column] = torch.linalg.solve(square + ridge * one, beside)
    return found


def _ahead(targets: Tensor, weights: Tensor) -> Tensor:
    """Forecasts (horizon, B, D) of histories (T, B, D) by a line."""
    count = targets.shape[-1]
    ahead = lag_features(targets, (len(weights) - 1) // count) @ weights
    forecasts: Tensor = ahead.unflatten(-1, (-1, count)).movedim(1, 0) + targets[-1]
    return forecasts
