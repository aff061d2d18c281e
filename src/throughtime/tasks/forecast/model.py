"""The model, a line through the history and a recurrent layer's last state; and the baselines.

    s = h_T                                           the last state, after dropout
    b_k = x_T + A_k (1, x_T, x_{T-l+1} - x_T, ..., x_{T-1} - x_T)                          or
    b_k = u_{T+k} + A_k (1, x_{T-l+1} - u_{T-l+1}, ..., x_T - u_T)       where there is a season
    y_k = b_k + W_k s + V tanh(P s + E_k + F f_k)

x are the targets of the history, u what is usual at that step of the season, u_{t+m} = u_t +
g (x_t - u_t), f_k what is known ahead, k = 1, ..., horizon. A is fitted by ridge regression before
the first step and stays as it is, in the form, with the lags and the ridge that forecast validation
best; W and V give a value for every quantile, and learn what the line leaves. After each validation
the band is widened, or narrowed, so that it holds 80 % of the validation part, step by step ahead.

Source: Lai, Chang, Yang and Liu, Modeling Long- and Short-Term Temporal Patterns with Deep Neural
Networks (2018) for a linear part added to the recurrent one; Wen, Torkkola, Narayanaswamy and
Madeka, A Multi-Horizon Quantile Recurrent Forecaster (2017) for quantiles of all horizons at once;
Winters, Forecasting Sales by Exponentially Weighted Moving Averages (1960) for what is usual;
Romano, Patterson and Candes, Conformalized Quantile Regression (2019) for the band.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from throughtime.tasks.forecast.windows import Facts, Windows, interpolate_seen, make_channels, thin
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.task import make_layers, run_layers

QUANTILES = (0.1, 0.5, 0.9)
MEDIAN = 1
_LAGS = 750  # numbers the line reads at most


class Forecaster(nn.Module):
    """Windows (length + horizon, B, width) to quantiles (horizon, B, targets, 3).

    Args:
        recipe: cell, layers, hidden, dropout and horizon.
        facts: columns, length and season.
    """

    def __init__(self, recipe: Recipe, facts: Facts) -> None:
        super().__init__()
        self.length, self.horizon = facts.length, recipe.horizon
        self.season, self.follow = facts.season, facts.follow
        self.channels = make_channels(facts)
        targets, hidden = self.channels.targets, recipe.hidden
        self.recurrent = make_layers(recipe, self.channels.width, reads=True)
        self.dropout = nn.Dropout(recipe.dropout)
        lags = count_lags(self.length, targets)
        self.register_buffer("line", torch.zeros(1 + lags * targets, self.horizon * targets))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("seasonal", torch.tensor(False))
        self.register_buffer("wider", torch.zeros(self.horizon, targets))
        read = self.recurrent.output_size
        self.direct = nn.Linear(read, self.horizon * targets * len(QUANTILES))
        self.place = nn.Embedding(self.horizon, hidden)
        self.state = nn.Linear(read, hidden)
        known = self.channels.known
        self.ahead = nn.Linear(known, hidden, bias=False) if known else None
        self.readout = nn.Linear(hidden, targets * len(QUANTILES))
        for last in (self.direct, self.readout):  # it begins at the line
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Quantiles, not yet in their order nor widened, from histories above what is known."""
        past, future = x[: self.length], x[self.length :]
        known = future[..., self.channels.width - self.channels.known :]
        seen = past[..., self.channels.targets : 2 * self.channels.targets].amax(-1, keepdim=True)
        gap = torch.expm1(past[..., self.channels.gap, None] + math.log(2))
        state: Tensor = self.dropout(run_layers(self.recurrent, past, gap, seen)[0][-1])
        base = self.linear_part(past)
        direct = self.direct(state).unflatten(-1, (self.horizon, -1)).movedim(1, 0)
        mixed = self.state(state) + self.place.weight[:, None]
        if self.ahead is not None:
            mixed = mixed + self.ahead(known)
        offsets = (direct + self.readout(torch.tanh(mixed))).unflatten(-1, (-1, len(QUANTILES)))
        quantiles: Tensor = base[..., None] + offsets
        return quantiles

    def linear_part(self, past: Tensor) -> Tensor:
        """The line's forecast (horizon, B, targets) of histories (length, B, width)."""
        count, first, line = self.channels.targets, self.channels.anomaly, self.get_buffer("line")
        seen = past[..., count : 2 * count]
        if self.get_buffer("seasonal"):
            anomaly, usual = past[..., first : first + 2 * count].split(count, -1)
            anomaly = interpolate_seen(anomaly, seen)
            features = season_features(anomaly, (len(line) - 1) // count)
            base = usual_ahead(anomaly, usual, self.horizon, self.season, self.follow)
        else:
            targets = interpolate_seen(past[..., :count], seen)
            features, base = lag_features(targets, (len(line) - 1) // count), targets[-1]
        forecast: Tensor = (features @ line).unflatten(-1, (self.horizon, -1)).movedim(1, 0) + base
        return forecast

    def set_line(self, weights: Tensor, seasonal: bool) -> None:
        """Reads the history by this line from now on, of what is usual or of the last value."""
        self.get_buffer("line").copy_(weights)
        self.get_buffer("seasonal").fill_(seasonal)
        self.get_buffer("fitted").fill_(True)

    def quantiles(self, x: Tensor) -> Tensor:
        """In their order, the band as wide as the last validation had it."""
        wider = self.get_buffer("wider")[:, None, :, None]
        around = wider * torch.tensor([-1.0, 0.0, 1.0])
        ordered: Tensor = self(x).sort(-1).values
        return (ordered + around).sort(-1).values

    def calibrate_band(self, answers: Tensor, truth: Tensor) -> None:
        """Makes the band so wide that it holds 80 % of the truth, at every step ahead.

        Args:
            answers: (horizon, B, D, 3) quantiles in their order, not widened.
            truth: (horizon, B, D), NaN where it is missing.
        """
        outside = torch.maximum(answers[..., 0] - truth, truth - answers[..., -1])
        level = QUANTILES[-1] - QUANTILES[0]
        wider = torch.nanquantile(outside, level, dim=1).nan_to_num()
        self.get_buffer("wider").copy_(wider)


def count_lags(length: int, targets: int) -> int:
    """Steps of the history that the line reads."""
    return min(length, max(1, _LAGS // targets))


def lag_features(targets: Tensor, used: int) -> Tensor:
    """(B, 1 + used D): a one, the level, and the differences of the lags from the last value."""
    lags = (targets[-used:] - targets[-1])[:-1].movedim(0, 1).flatten(1)
    ones = torch.ones(lags.shape[0], 1, dtype=targets.dtype)
    return torch.cat([ones, targets[-1], lags], 1)


def season_features(anomaly: Tensor, used: int) -> Tensor:
    """(B, 1 + used D): a one, and the last lags of the distances from what is usual."""
    ones = torch.ones(anomaly.shape[1], 1, dtype=anomaly.dtype)
    return torch.cat([ones, anomaly[-used:].movedim(0, 1).flatten(1)], 1)


def usual_ahead(anomaly: Tensor, usual: Tensor, horizon: int, season: int, follow: float) -> Tensor:
    """What is usual at the steps ahead, (horizon, B, D), of histories (T, B, D)."""
    return season_before(usual + follow * anomaly, horizon, season)


def season_before(targets: Tensor, horizon: int, season: int) -> Tensor:
    """The values a season before each step ahead, (horizon, B, D), of histories (T, B, D).

    Step k = 0, 1, ... ahead has the value at T + k - season * ceil((k + 1) / season); where the
    history does not reach so far back, or there is no season, the last one.
    """
    length, steps = len(targets), torch.arange(horizon)
    rows = length + steps - season * ((steps + season) // season)
    return targets[torch.where(rows >= 0, rows, length - 1)]


def pinball(answers: Tensor, truth: Tensor) -> Tensor:
    """Mean of max(q e, (q - 1) e) where truth is known, e = truth - answer; 0 where none is.

    Args:
        answers: (..., 3), one for each quantile q.
        truth: (...), NaN where it is missing.
    """
    seen = torch.isfinite(truth)
    levels = torch.tensor(QUANTILES, dtype=answers.dtype)
    errors = torch.where(seen, truth, 0.0)[..., None] - answers
    losses = torch.maximum(levels * errors, (levels - 1) * errors).mean(-1)
    return torch.where(seen, losses, 0.0).sum() / seen.sum().clamp(min=1)


Point = Callable[[Tensor], Tensor]  # targets (T, B, D) -> forecasts (horizon, B, D)
Problem = tuple[Tensor, Tensor]  # features (B, F) and what they are to predict, (B, horizon D)
_MOST = 4000  # windows of the training part that are fitted
_RIDGES = (1e-3, 1e-1, 1e1, 1e3)
_HORIZONS = (1, 2)  # how far back a line may read, in horizons, if not all
_CHOOSING = 6  # steps ahead that choose a ridge where the truth misses values


def make_baselines(windows: Windows) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> from targets of histories (T, B, D) to quantiles (horizon, B, D, 3).

    The last value, the value a season before and a line through lags, each with the quantiles of
    its own errors on the training windows around it, for every step ahead.
    """
    horizon, season = windows.horizon, windows.facts.season
    train = _train_origins(windows)
    points: dict[str, Point] = {"persistence": lambda past: season_before(past, horizon, 1)}
    if season > 1:
        points["seasonal naive"] = lambda past: season_before(past, horizon, season)
    line = fit_line(windows)
    points["linear on lags"] = lambda past: _extend_line(past, line)
    past, truth = _read_targets(windows, train)
    return {name: _add_quantiles(point, past, truth) for name, point in points.items()}


def _read_targets(windows: Windows, origins: Tensor) -> tuple[Tensor, Tensor]:
    return windows.past(origins).double(), windows.cut(origins)[1].double()


def _add_quantiles(point: Point, past: Tensor, truth: Tensor) -> Callable[[Tensor], Tensor]:
    """A point forecast with the quantiles of its errors on these windows; the middle stays it."""
    errors = truth - point(past)  # (horizon, B, D)
    levels = torch.tensor(QUANTILES, dtype=errors.dtype)
    around = torch.nanquantile(errors, levels, dim=1)  # (3, horizon, D)
    around[len(QUANTILES) // 2] = 0
    around = around.nan_to_num().movedim(0, -1)[:, None]
    return lambda targets: point(targets.double())[..., None] + around


def fit_line(windows: Windows) -> Tensor:
    """Ridge regression of all horizons on the lags, as differences from the last value.

    Its ridge is the one of four that forecasts the validation windows best; what is missing of the
    truth is left out.

    Returns:
        Weights (1 + lags D, horizon D) of `lag_features`.
    """
    return _fit_lags(windows)[1]


def _fit_lags(windows: Windows) -> tuple[float, Tensor]:
    """The error on the validation windows, and the weights."""
    train, other = _train_origins(windows), windows.few("validation")
    one, two = (_lag_problem(windows, origins) for origins in (train, other))
    return _select_ridge(one, two, [one[0].shape[1]])


def fit_linear_part(windows: Windows) -> tuple[Tensor, bool]:
    """The line that a net adds to: `fit_line`, or the same of the distances from a season.

    Returns:
        Weights of `lag_features` or `season_features`, whichever forecasts the validation windows
        better, and whether it is the latter.
    """
    error, plain = _fit_lags(windows)
    if not windows.channels.seasonal:
        return plain, False
    learned, other = thin(windows.learned, _MOST), windows.few("validation")
    one, two = (_season_problem(windows, origins) for origins in (learned, other))
    count, most = windows.channels.targets, one[0].shape[1]
    reads = {min(most, 1 + count * many * windows.horizon) for many in _HORIZONS}
    other_error, seasonal = _select_ridge(one, two, sorted(reads | {most}))
    return (seasonal, True) if other_error < error else (plain, False)


def _train_origins(windows: Windows) -> Tensor:
    return thin(windows.origins["train"], _MOST)


def _lag_problem(windows: Windows, origins: Tensor) -> Problem:
    past, truth = _read_targets(windows, origins)
    features = lag_features(past, count_lags(len(past), past.shape[-1]))
    return features, (truth - past[-1]).movedim(0, 1).flatten(1)


def _season_problem(windows: Windows, origins: Tensor) -> Problem:
    anomaly, usual = (part.double() for part in windows.seasons(origins))
    facts, truth = windows.facts, windows.cut(origins)[1].double()
    base = usual_ahead(anomaly, usual, windows.horizon, facts.season, facts.follow)
    features = season_features(anomaly, count_lags(len(anomaly), anomaly.shape[-1]))
    return features, (truth - base).movedim(0, 1).flatten(1)


def _select_ridge(one: Problem, two: Problem, reads: Sequence[int]) -> tuple[float, Tensor]:
    """The error on other windows, and the weights, by the ridge and the lags that it is least by.

    Where the truth misses values, these are chosen by a few of the steps ahead.

    Args:
        one: that are fitted.
        two: that the error is of.
        reads: how many features may be read, the one and the last ones.
    """
    (x, y), (other, later) = one, two
    some = max(1, y.shape[1] // _CHOOSING) if not torch.isfinite(y).all() else 1
    errors = []
    for read in reads:
        for ridge in _RIDGES:
            predicted = other @ _solve_ridge(x, y[:, ::some], ridge, read)
            errors.append((float((later[:, ::some] - predicted).abs().nanmean()), ridge, read))
    error, ridge, read = min(errors)
    return error, _solve_ridge(x, y, ridge, read)


def _solve_ridge(x: Tensor, y: Tensor, ridge: float, read: int) -> Tensor:
    """Least squares; the weights of features that are not read are 0."""
    used = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(x.shape[1])[1 - read :]])
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)
    x, seen, one = x[:, used], torch.isfinite(y), torch.eye(read, dtype=x.dtype)
    every = torch.arange(y.shape[1])
    for columns in [every] if seen.all() else every.split(1):
        rows = seen[:, columns[0]]
        square = x[rows].T @ x[rows] + ridge * one
        products = x[rows].T @ y[rows][:, columns]
        weights[used[:, None], columns] = torch.linalg.solve(square, products)
    return weights


def _extend_line(targets: Tensor, weights: Tensor) -> Tensor:
    """Forecasts (horizon, B, D) of histories (T, B, D) by a line."""
    count = targets.shape[-1]
    ahead = lag_features(targets, (len(weights) - 1) // count) @ weights
    forecasts: Tensor = ahead.unflatten(-1, (-1, count)).movedim(1, 0) + targets[-1]
    return forecasts
