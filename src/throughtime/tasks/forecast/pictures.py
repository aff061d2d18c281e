"""What the page of a forecast shows: held-out series with their bands, errors by step, coverage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from throughtime.tasks.forecast.model import MEDIAN
from throughtime.tasks.forecast.windows import Windows
from throughtime.tasks.picture import Curve, Picture, Plot
from throughtime.tasks.tables.clock import written

_SERIES, _BEFORE = 3, 2  # series that are drawn, and horizons of history before a forecast


def make_pictures(
    windows: Windows, origins: Tensor, answers: Tensor, beside: Mapping[str, Tensor]
) -> list[Picture]:
    """The pictures of some windows.

    Args:
        windows: of all series.
        origins: (B,) the first future steps of the windows that are shown.
        answers: (horizon, B, D, 3) quantiles, scaled.
        beside: the same of each baseline.
    """
    return [_drawn(windows, origins, answers), *_by_step(windows, origins, answers, beside)]


def _drawn(windows: Windows, origins: Tensor, answers: Tensor) -> Picture:
    """The last window of each of some series: what was, what was forecast, what came."""
    numbers = windows.series_of(origins)
    chosen = [int((numbers == n).nonzero()[-1]) for n in numbers.unique()[:_SERIES]]
    return Picture(
        title="What does it forecast?",
        lead="The last window of the test part of each series: what came before, the median with "
        "the band from the quantile 0.1 to 0.9, and what came; 8 of 10 points belong in the band.",
        plots=tuple(_plot(windows, int(origins[n]), answers[:, n]) for n in chosen),
    )


def _plot(windows: Windows, origin: int, answer: Tensor) -> Plot:
    number = int(windows.series_of(torch.tensor([origin])))
    one, horizon = windows.series[number], windows.horizon
    place = origin - int(windows.firsts[number])
    first = max(0, place - min(windows.length, _BEFORE * horizon))
    mean, deviation = windows.means[number, 0], windows.deviations[number, 0]
    low, middle, high = (answer[:, 0].double() * deviation + mean).T.tolist()
    ahead = list(range(1, horizon + 1))
    begin = str(written(float(one.times[place]), windows.facts.form))
    target = windows.facts.targets[0]
    return Plot(
        f"forecast of {target} against what came", f"steps from {begin} on", target,
        (
            Curve("0.1 to 0.9", ahead, low, "band", high),
            Curve("median", ahead, middle),
            Curve("what was and came", list(range(first - place + 1, horizon + 1)),
                  one.values[first : place + horizon, 0].tolist(), beside=True),
        ),
        of=one.name,
    )  # fmt: skip


def _by_step(
    windows: Windows, origins: Tensor, answers: Tensor, beside: Mapping[str, Tensor]
) -> list[Picture]:
    truth = windows.cut(origins)[1].double()
    deviations = windows.deviations[windows.series_of(origins)]
    every = {"net": answers, **beside}
    distances = {name: (truth - one[..., MEDIAN].double()).abs() for name, one in every.items()}
    errors = {n: (d * deviations).flatten(1).nanmean(1).tolist() for n, d in distances.items()}
    inside = ((answers[..., 0] <= truth) & (truth <= answers[..., -1])).double()
    held = torch.where(torch.isfinite(truth), inside, torch.nan).flatten(1).nanmean(1).tolist()
    return [_of_errors(errors), _of_coverage(held)]


def _of_errors(errors: Mapping[str, list[float]]) -> Picture:
    net = errors["net"]
    ahead = list(range(1, len(net) + 1))
    curves = tuple(Curve(name, ahead, values) for name, values in errors.items())
    return Picture(
        title="How does the error grow?",
        lead="The error of the median, in the target's units, beside the baselines.",
        says=(f"At the first step {net[0]:.4g}, at the last {net[-1]:.4g}.",),
        plots=(Plot("error by steps ahead", "steps ahead", "mean absolute error", curves),),
        head=("steps ahead", *errors),
        table=tuple(zip(ahead, *errors.values(), strict=True)),
    )


def _of_coverage(held: list[float]) -> Picture:
    ahead = list(range(1, len(held) + 1))
    curve = Curve("coverage", ahead, held)
    return Picture(
        title="Does the band hold what it says?",
        lead="The share of the truth between the quantiles 0.1 and 0.9, by steps ahead.",
        plots=(
            Plot("coverage by steps ahead", "steps ahead", "share inside", (curve,),
                 line=(0.8, "0.8")),
        ),
        head=("steps ahead", "share inside"),
        table=tuple(zip(ahead, held, strict=True)),
    )  # fmt: skip
