"""The model: a recurrent layer reads the history; its last state tells all horizons at once.

    s = h_T                                           the last state, after dropout
    y_k = y'_k + A_k (x_1 - x_T, ..., x_T - x_T) + W_k s + V tanh(P s + E_k + F f_k)

y' is the value a season before, which is known at k = 1, ..., horizon; x are the targets of the
history, f_k what is known ahead. W and V give a value for every quantile; A shifts them together.

Source: Lai, Chang, Yang and Liu, Modeling Long- and Short-Term Temporal Patterns with Deep Neural
Networks (2018) for the linear part beside the recurrent one; Wen, Torkkola, Narayanaswamy and
Madeka, A Multi-Horizon Quantile Recurrent Forecaster (2017) for quantiles of all horizons at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from throughtime.tasks.forecast.options import Facts
from throughtime.tasks.forecast.windows import channels_of
from throughtime.tasks.layers import make_layers, run_layers
from throughtime.tasks.recipe import Recipe

QUANTILES = (0.1, 0.5, 0.9)
MEDIAN = 1


class Forecaster(nn.Module):
    """Windows (length + horizon, B, width) to quantiles (horizon, B, targets, 3).

    Args:
        recipe: cell, layers, hidden, dropout and horizon.
        facts: columns, length and season.
    """

    def __init__(self, recipe: Recipe, facts: Facts) -> None:
        super().__init__()
        self.length, self.horizon, self.season = facts.length, recipe.horizon, facts.season
        self.channels = channels_of(facts)
        targets, hidden = self.channels.targets, recipe.hidden
        self.recurrent = make_layers(recipe, self.channels.width, reads=True)
        self.dropout = nn.Dropout(recipe.dropout)
        self.straight = nn.Linear(self.length * targets, self.horizon * targets)
        read = self.recurrent.output_size
        self.direct = nn.Linear(read, self.horizon * targets * len(QUANTILES))
        self.place = nn.Embedding(self.horizon, hidden)
        self.state = nn.Linear(read, hidden)
        known = self.channels.known
        self.ahead = nn.Linear(known, hidden, bias=False) if known else None
        self.readout = nn.Linear(hidden, targets * len(QUANTILES))
        for weight in self.straight.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Quantiles, not yet in their order, from histories above what is known ahead."""
        past, future = x[: self.length], x[self.length :]
        known = future[..., self.channels.width - self.channels.known :]
        targets = past[..., : self.channels.targets]
        seen = past[..., self.channels.targets : 2 * self.channels.targets].amax(-1, keepdim=True)
        gap = torch.expm1(past[..., self.channels.gap, None] + math.log(2))
        state: Tensor = self.dropout(run_layers(self.recurrent, past, gap, seen)[0][-1])
        straight = self.straight((targets - targets[-1]).movedim(0, 1).flatten(1))
        base = before(targets, self.horizon, self.season)
        base = base + straight.unflatten(-1, (self.horizon, -1)).movedim(1, 0)
        direct = self.direct(state).unflatten(-1, (self.horizon, -1)).movedim(1, 0)
        mixed = self.state(state) + self.place.weight[:, None]
        if self.ahead is not None:
            mixed = mixed + self.ahead(known)
        spread = (direct + self.readout(torch.tanh(mixed))).unflatten(-1, (-1, len(QUANTILES)))
        quantiles: Tensor = base[..., None] + spread
        return quantiles


def before(targets: Tensor, horizon: int, season: int) -> Tensor:
    """The values a season before each step ahead, (horizon, B, D), of histories (T, B, D).

    Step k = 0, 1, ... ahead has the value at T + k - season * ceil((k + 1) / season); where the
    history does not reach so far back, or there is no season, the last one.
    """
    length, steps = len(targets), torch.arange(horizon)
    rows = length + steps - season * ((steps + season) // season)
    return targets[torch.where(rows >= 0, rows, length - 1)]


def pinball(answers: Tensor, truth: Tensor) -> Tensor:
    """Mean over what is there of max(q e, (q - 1) e), e = truth - answer; 0 when nothing is.

    Args:
        answers: (..., 3), one for each quantile q.
        truth: (...), NaN where it is missing.
    """
    seen = torch.isfinite(truth)
    levels = torch.tensor(QUANTILES, dtype=answers.dtype)
    errors = torch.where(seen, truth, 0.0)[..., None] - answers
    losses = torch.maximum(levels * errors, (levels - 1) * errors).mean(-1)
    return torch.where(seen, losses, 0.0).sum() / seen.sum().clamp(min=1)
