"""What a training step tells of one layer: how far back its gradient reaches, and saturation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.diagnosis.activity import activities
from throughtime.diagnosis.gates import share_at_ends
from throughtime.diagnosis.rows import Rows
from throughtime.diagnosis.walk import Walk, sent_back, walk
from throughtime.diagnosis.whole import norms_by_lag
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.sequence import SequenceLayer


@dataclass(frozen=True)
class Pulse:
    """One layer and direction in one training step.

    rho(k) is that of `LagGradient`: on the CPU at every lag, elsewhere at lags that triple and
    between them on the line through ln rho.

    Attributes:
        name: the module's name in the model.
        layer: number of the layer in it.
        direction: 0 forward, 1 backward.
        steps: T.
        log10_rho: lag -> log10 rho(lag), at the lags measured; empty where the loss does not see
            the layer's last step.
        saturated: the share of a bounded function's values, at a few steps, that stand at its
            ends; of several functions the largest, None where there are none.
    """

    name: str
    layer: int
    direction: int
    steps: int
    log10_rho: dict[int, float]
    saturated: float | None

    @property
    def place(self) -> str:
        """The layer in a word, as in `encoder.0` and `encoder.0.backward`."""
        return f"{self.name or 'model'}.{self.layer}{'.backward' if self.direction else ''}"

    def horizon_steps(self, share: float = 1e-3) -> int | None:
        """The first lag at which rho is below the share; None where there is none."""
        level, before = math.log10(share), (0, 0.0)
        for k, value in self.log10_rho.items():
            if value < level:
                drop = before[1] - value
                part = (before[1] - level) / drop if math.isfinite(drop) else 1.0
                return min(k, math.floor(before[0] + part * (k - before[0])) + 1)
            before = k, value
        return None

    def at(self, lag: int) -> float:
        """log10 rho(lag)."""
        below = max(k for k in self.log10_rho if k <= lag)
        above = min(k for k in self.log10_rho if k >= lag)
        low, high = self.log10_rho[below], self.log10_rho[above]
        if below == above or not math.isfinite(high - low):
            return high
        return low + (high - low) * (lag - below) / (above - below)


def pulses(name: str, layer: SequenceLayer, rows: Rows, lag: int | None) -> tuple[Pulse, ...]:
    """Measure every layer and direction of a module on a few rows.

    Args:
        name: the module's.
        layer: without dilation.
        rows: of a training step.
        lag: one more lag to measure at; the longest, T - 1, always is one.

    Raises:
        ShapeError: sequences of one step.
        OptionError: the numbers are not finite, or a cell declares its gates wrongly.
    """
    T = rows.batch.x.shape[0]
    if T < 2:
        raise ShapeError(f"layer {name or 'of the model'} is given sequences of one step")
    lags = lags_of(T, lag)
    return tuple(
        Pulse(name, w.layer, w.direction, T, rho, _saturated(w))
        for w, rho in _reached(layer, rows, lags)
    )


def lags_of(steps: int, lag: int | None = None) -> list[int]:
    """0, ..., (T - 1) / 9, (T - 1) / 3, T - 1; with one more where it is in reach."""
    found, k = {0} if lag is None or lag >= steps else {0, lag}, steps - 1
    while k:
        found.add(k)
        k //= 3
    return sorted(found)


def _reached(
    layer: SequenceLayer, rows: Rows, lags: list[int]
) -> Iterator[tuple[Walk, dict[int, float]]]:
    """log10 rho by lag, for the loss that sends these gradients back to the last step."""
    if rows.batch.x.device.type == "cpu":
        for walked, norms in norms_by_lag(layer, rows):
            yield walked, {} if norms is None else _log10_rho(range(len(norms)), norms)
        return
    y, finals, walks = walk(layer, rows.batch, lags, last_only=True)
    sent = sent_back(y, finals, rows)
    for walked in walks:
        norms = None if sent is None else walked.gradients(sent).double().norm(dim=-1).flip(0)
        yield walked, {} if norms is None else _log10_rho(walked.lags[::-1], norms)


def _log10_rho(lags: Sequence[int], norms: Tensor) -> dict[int, float]:
    """Of the norms (lags, B), lag 0 first."""
    norms = norms[:, norms[0] > 0]  # a row of which the loss is blind has no ratio
    if not norms.shape[1]:
        return {}
    if not bool(norms.isfinite().all()):
        raise OptionError("a gradient by the states is NaN or infinity")
    return dict(zip(lags, (norms / norms[0]).log10().mean(1).tolist(), strict=True))


@torch.no_grad()
def _saturated(walked: Walk) -> float | None:
    shares = [share_at_ends(f) for f in activities(walked.steps())]
    return max(torch.stack(shares).tolist()) if shares else None
