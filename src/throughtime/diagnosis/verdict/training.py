"""The rules on how it is trained: truncation, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from throughtime.diagnosis.quantities.clipping import Clipping
from throughtime.diagnosis.report.report import Report
from throughtime.diagnosis.verdict.cured_copy import Trial
from throughtime.diagnosis.verdict.trouble import Trouble

POINTS, RATE, BIAS, CHANCE = 0.9, 0.2, 0.3, 0.01
"""The least cosine of a truncated gradient; the largest clip rate and bias; how likely so many
clipped batches may be at that rate before they are held against the threshold."""


def truncation(report: Report, trial: Trial) -> Iterator[Trouble]:
    """The gradient of back-propagation as far as the user's points elsewhere."""
    K = report.truncation
    for w in report.weight_lags if K is not None else ():
        assert K is not None
        cosine = w.cosine_by_lag[min(K, len(w.cosine_by_lag) - 1)]
        if cosine >= POINTS:
            continue
        of = f" of {w.name}" if w.name else ""
        yield Trouble(
            "truncation",
            w.name,
            f"Truncated too early: back-propagation over {K} steps has a cosine of {cosine:.2f} "
            f"with the whole gradient{of}{', backward' if w.direction else ''}, below {POINTS}.",
            f"Back-propagate over {w.steps_to(POINTS)} steps, from where on the cosine is "
            f"{POINTS} or more, with checkpoint_every=k of Recurrent where memory is short.",
        )


def clipping(report: Report, trial: Trial) -> Iterator[Trouble]:
    """The mean gradient changes by 0.3 of its length, or more than one batch in five is clipped.

    The rate is held against one in five by a binomial test: of few batches some may be clipped.
    """
    c = report.clipping
    if c is None or c.threshold is None or c.clip_rate is None or c.mean_bias is None:
        return
    if not often(c.clip_rate, len(c.norms)) and c.mean_bias <= BIAS:
        return
    low = c.threshold < min(c.norms) / 10
    yield Trouble(
        "clipping",
        "",
        f"Clipping at {c.threshold:.3g} {'is far too low: it ' if low else ''}changes "
        f"{c.clip_rate:.0%} of the gradients, whose median norm is {c.median_norm:.3g}, and the "
        f"mean by {c.mean_bias:.2f} of its length.",
        _better(c, trial),
    )


def often(rate: float, batches: int) -> bool:
    """Whether so high a rate is no chance where one batch in five is clipped."""
    clipped = round(rate * batches)
    chances = (math.comb(batches, k) * RATE**k * (1 - RATE) ** (batches - k)
               for k in range(clipped, batches + 1))  # fmt: skip
    return sum(chances) < CHANCE


def _better(c: Clipping, trial: Trial) -> str:
    norms = torch.tensor(c.norms, dtype=torch.float64, device="cpu")
    threshold = float(norms.quantile(0.9))
    new = trial.clipping(threshold)
    noise = "The raw gradient is noise: mend the Jacobian first. " if c.is_noise else ""
    # Below the mean gradient's own norm what UClip carries on grows without end.
    carried = c.threshold is not None and c.threshold > c.mean_norm
    return (
        f"{noise}Clip {'with throughtime.UClip, or ' if carried else ''}at the 90th percentile of "
        f"the norms, {threshold:.3g}: on the same batches that changes {new.clip_rate or 0:.0%} of "
        f"the gradients and the mean by {new.mean_bias or 0:.2f} of its length."
    )
