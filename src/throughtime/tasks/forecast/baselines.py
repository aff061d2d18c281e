"""Forecasts that need no net: the last value, the value a season before, a line through lags.

Each has the quantiles of its own errors on the training windows around it, for every step ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from throughtime.tasks.forecast.model import (
    QUANTILES,
    ahead_of,
    before,
    lag_features,
    lags_read,
    season_features,
)
from throughtime.tasks.forecast.windows import Windows

Point = Callable[[Tensor], Tensor]  # targets (T, B, D) -> forecasts (horizon, B, D)
Given = tuple[Tensor, Tensor]  # features (B, F) and what is to be told by them, (B, horizon D)
_MOST = 4000  # windows of the training part that are fitted
_RIDGES = (1e-3, 1e-1, 1e1, 1e3)
_HORIZONS = (1, 2)  # how far back a line reads, beside all
_CHOOSING = 6  # steps ahead that choose a ridge where the truth misses values


def make_baselines(windows: Windows) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> from targets of histories (T, B, D) to quantiles (horizon, B, D, 3)."""
    horizon, season = windows.horizon, windows.facts.season
    train = _fitted(windows)
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
    train, other = _fitted(windows), windows.few("validation")
    one, two = (_by_last(windows, origins) for origins in (train, other))
    return _best(one, two, [one[0].shape[1]])[1]


def fit_ground(windows: Windows) -> tuple[Tensor, bool]:
    """The line that a net stands on: `fit_line`, or the same of what is apart from a season.

    Returns:
        Weights of `lag_features` or `season_features`, whichever forecasts the validation windows
        better, and whether it is the latter.
    """
    train, other = _fitted(windows), windows.few("validation")
    one, two = (_by_last(windows, origins) for origins in (train, other))
    error, plain = _best(one, two, [one[0].shape[1]])
    if not windows.channels.seasonal:
        return plain, False
    one, two = (_by_season(windows, origins) for origins in (_few(windows.learned), other))
    count, most = windows.channels.targets, one[0].shape[1]
    reads = {min(most, 1 + count * many * windows.horizon) for many in _HORIZONS}
    other_error, seasonal = _best(one, two, sorted(reads | {most}))
    return (seasonal, True) if other_error < error else (plain, False)


def _fitted(windows: Windows) -> Tensor:
    return _few(windows.origins["train"])


def _few(origins: Tensor) -> Tensor:
    return origins[:: max(1, -(-len(origins) // _MOST))]


def _by_last(windows: Windows, origins: Tensor) -> Given:
    past, truth = _targets(windows, origins)
    features = lag_features(past, lags_read(len(past), past.shape[-1]))
    return features, (truth - past[-1]).movedim(0, 1).flatten(1)


def _by_season(windows: Windows, origins: Tensor) -> Given:
    apart, usual = (part.double() for part in windows.seasons(origins))
    facts, truth = windows.facts, windows.cut(origins)[1].double()
    base = ahead_of(apart, usual, windows.horizon, facts.season, facts.follow)
    features = season_features(apart, lags_read(len(apart), apart.shape[-1]))
    return features, (truth - base).movedim(0, 1).flatten(1)


def _best(one: Given, two: Given, reads: Sequence[int]) -> tuple[float, Tensor]:
    """The error on other windows, and the weights, by the ridge and the lags that it is least by.

    Where the truth misses values, these are chosen by a few of the steps ahead.

    Args:
        one: that are fitted.
        two: that the error is of.
        reads: how many features may be read, the one and the last ones.
    """
    (x, y), (other, later) = one, two
    some = max(1, y.shape[1] // _CHOOSING) if not torch.isfinite(y).all() else 1
    found = []
    for read in reads:
        for ridge in _RIDGES:
            told = other @ _solved(x, y[:, ::some], ridge, read)
            found.append((float((later[:, ::some] - told).abs().nanmean()), ridge, read))
    error, ridge, read = min(found)
    return error, _solved(x, y, ridge, read)


def _solved(x: Tensor, y: Tensor, ridge: float, read: int) -> Tensor:
    """Least squares; the weights of features that are not read are 0."""
    used = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(x.shape[1])[1 - read :]])
    found = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)
    x, seen, one = x[:, used], torch.isfinite(y), torch.eye(read, dtype=x.dtype)
    every = torch.arange(y.shape[1])
    for columns in [every] if seen.all() else every.split(1):
        there = seen[:, columns[0]]
        square = x[there].T @ x[there] + ridge * one
        beside = x[there].T @ y[there][:, columns]
        found[used[:, None], columns] = torch.linalg.solve(square, beside)
    return found


def _ahead(targets: Tensor, weights: Tensor) -> Tensor:
    """Forecasts (horizon, B, D) of histories (T, B, D) by a line."""
    count = targets.shape[-1]
    ahead = lag_features(targets, (len(weights) - 1) // count) @ weights
    forecasts: Tensor = ahead.unflatten(-1, (-1, count)).movedim(1, 0) + targets[-1]
    return forecasts
