"""Forecasts that need no net: the last value, the value a season before, a line through lags.

Each has the quantiles of its own errors on the training windows around it, for every step ahead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from throughtime.tasks.forecast.model import QUANTILES, before
from throughtime.tasks.forecast.windows import Windows

Point = Callable[[Tensor], Tensor]  # targets (T, B, D) -> forecasts (horizon, B, D)
_MOST = 4000  # windows of the training part that are fitted
_RIDGES = (1e-3, 1e-1, 1e1, 1e3)
_LAGS = 1500  # numbers a line reads at most


def make_baselines(windows: Windows) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> from targets of histories (T, B, D) to quantiles (horizon, B, D, 3)."""
    horizon, season = windows.horizon, windows.facts.season
    train = windows.origins["train"]
    train = train[:: max(1, -(-len(train) // _MOST))]
    points: dict[str, Point] = {"persistence": lambda past: before(past, horizon, 1)}
    if season > 1:
        points["seasonal naive"] = lambda past: before(past, horizon, season)
    points["linear on lags"] = _line(windows, train)
    past, truth = _targets(windows, train)
    return {name: _with_quantiles(point, past, truth) for name, point in points.items()}


def _targets(windows: Windows, origins: Tensor) -> tuple[Tensor, Tensor]:
    inputs, truth = windows.cut(origins)
    return inputs[: windows.length, :, : windows.channels.targets].double(), truth.double()


def _with_quantiles(point: Point, past: Tensor, truth: Tensor) -> Callable[[Tensor], Tensor]:
    """A point forecast with the quantiles of its errors on these windows; the middle stays it."""
    errors = truth - point(past)  # (horizon, B, D)
    levels = torch.tensor(QUANTILES, dtype=errors.dtype)
    spread = torch.nanquantile(errors, levels, dim=1)  # (3, horizon, D)
    spread[len(QUANTILES) // 2] = 0
    around = spread.nan_to_num().movedim(0, -1)[:, None]
    return lambda targets: point(targets.double())[..., None] + around


def _line(windows: Windows, train: Tensor) -> Point:
    """Ridge regression of all horizons on the lags, as differences from the last value.

    Its ridge is the one of four that forecasts the validation windows best.
    """
    past, truth = _targets(windows, train)
    other, later = _targets(windows, windows.few("validation"))
    fits = [_fit(past, truth, ridge) for ridge in _RIDGES]
    errors = [float((later - fit(other)).abs().nanmean()) for fit in fits]
    return fits[min(range(len(fits)), key=errors.__getitem__)]


def _fit(past: Tensor, truth: Tensor, ridge: float) -> Point:
    used = min(len(past), max(1, _LAGS // past.shape[-1]))
    x = _features(past, used)
    y = (truth - past[-1]).nan_to_num().movedim(0, 1).flatten(1)
    square = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(square, x.T @ y)

    def answer(targets: Tensor) -> Tensor:
        ahead = _features(targets, used) @ weights
        forecasts: Tensor = ahead.unflatten(-1, (len(truth), -1)).movedim(1, 0) + targets[-1]
        return forecasts

    return answer


def _features(targets: Tensor, used: int) -> Tensor:
    """(B, 1 + used D): a one, the level, and the differences of the lags from the last value."""
    lags = (targets[-used:] - targets[-1])[:-1].movedim(0, 1).flatten(1)
    ones = torch.ones(len(lags), 1, dtype=lags.dtype)
    return torch.cat([ones, targets[-1], lags], 1)
