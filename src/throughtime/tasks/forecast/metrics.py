"""How good forecasts are, in the units of the file."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.tasks.forecast.model import MEDIAN, pinball
from throughtime.tasks.forecast.windows import Windows

RULE = (
    "mae, rmse: of the median, in the target's units; mase: mae over that of the season before in "
    "the training part; pinball: of the quantiles, in deviations of the training part; "
    "coverage_80: share of the truth between the quantiles 0.1 and 0.9"
)


def measure(windows: Windows, origins: Tensor, answers: Tensor) -> dict[str, float]:
    """The metrics of quantiles (horizon, B, D, 3) for some windows; missing truth is left out."""
    truth, answers = windows.cut(origins)[1].double(), answers.double()
    number = windows.series_of(origins)
    errors = (truth - answers[..., MEDIAN]) * windows.deviations[number]
    inside = ((answers[..., 0] <= truth) & (truth <= answers[..., -1])).double()
    inside = torch.where(torch.isfinite(truth), inside, torch.nan)
    return {
        "mae": float(errors.abs().nanmean()),
        "rmse": float(errors.square().nanmean().sqrt()),
        "mase": float((errors.abs() / windows.naive[number]).nanmean()),
        "pinball": float(pinball(answers, truth)),
        "coverage_80": float(inside.nanmean()),
    }
