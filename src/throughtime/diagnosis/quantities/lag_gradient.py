"""How far back it learns: the gradient of the last step's loss by the states before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.diagnosis.observe import LayerDirection, locate
from throughtime.diagnosis.observe.every_state import Path
from throughtime.diagnosis.observe.examined import ModelRun
from throughtime.errors import NotFiniteError, OptionError, ShapeError


@dataclass(frozen=True)
class LagGradient(LayerDirection):
    """rho(k) = exp(mean over rows of ln(||dL/ds_{T-k}|| / ||dL/ds_T||)) of one direction.

    L is the loss at the last step only, s all states of the cell side by side; T is each row's
    last step, of the backward direction its first, so that k counts forward.

    Attributes:
        log10_rho_by_lag: log10 rho(k), k = 0 to T - 1; -inf where any row's gradient is zero.
        horizon_e_steps: the first k with rho(k) < 1/e; None where there is none in the sequence.
        horizon_1e3_steps: likewise for 1e-3.
        slope_nats_per_step: of the least-squares line through ln rho(k) over the finite lags.
        zero_share: of all lags and rows, gradients that are exactly zero.
        omega: sum over steps of (||d_t J_t|| / ||d_t|| - 1)^2, d_t = dL/ds_t, mean over rows;
            a zero gradient counts 1.
        rows_by_lag: how many rows rho(k) is the mean of: those of more than k steps, and of two
            at least, whose last step the loss sees.
    """

    log10_rho_by_lag: tuple[float, ...]
    horizon_e_steps: int | None
    horizon_1e3_steps: int | None
    slope_nats_per_step: float
    zero_share: float
    omega: float
    rows_by_lag: tuple[int, ...] = ()

    @property
    def largest_log10_rho(self) -> float:
        """The largest over all lags; far above 0 where gradients explode."""
        return max(self.log10_rho_by_lag)

    @property
    def last_lag(self) -> int:
        """The longest lag of a row whose last step the loss sees."""
        return len(self.log10_rho_by_lag) - 1

    def at(self, lag: int) -> float:
        """log10 rho(lag), or of the longest lag where all rows are shorter."""
        return self.log10_rho_by_lag[min(lag, self.last_lag)]


@dataclass(frozen=True)
class Unseen(LayerDirection):
    """A layer and direction whose last step the loss does not see.

    Attributes:
        both_ways: whether the module has two directions.
        read_steps: after how many of its steps the loss reads it last; 0 where never.
        steps: T, of the longest row.
    """

    both_ways: bool
    read_steps: int
    steps: int

    def is_trouble(self, lag: int) -> bool:
        """Whether the loss reads it after at most `lag` steps and at most half of its steps."""
        return self.read_steps <= min(lag, self.steps // 2)


def lag_gradients(run: ModelRun) -> tuple[LagGradient, ...]:
    """Measure every layer and direction whose last step the loss depends on.

    Rows of several lengths count their lags from their own ends, as do those that a loop carries
    unchanged past their ends; at lag k those of more than k steps count.

    Args:
        run: of `ExaminedModel.run(..., last_only=True)`.

    Raises:
        ShapeError: sequences of one step, which have no lag.
        OptionError: the loss depends on no layer's last step, or a gradient is not finite.

    Source: Pascanu, Mikolov and Bengio, On the Difficulty of Training Recurrent Neural Networks
    (2013), its equation 9 for Omega.
    """
    if all(p.steps < 2 for p in run.paths):
        raise ShapeError("a lag needs sequences of at least 2 steps, got 1")
    measured = []
    for path in run.paths:
        parts = path.by_chain(run.loss)
        _check_finite(path, path.align_ends(parts))
        if path.name in run.not_whole:
            path = path.cut_at_gradient(parts)
        d, several = path.align_ends(parts), path.alive.sum(0) > 1
        if bool((d[-1, several] != 0).any()):
            measured.append(_measure_path(path, parts, d))
    if not measured:
        raise OptionError(
            "the loss sends no gradient to the last step of any recurrent layer, from which lags "
            "are counted; give batches whose last step has a target, or end them where it has"
        )
    return tuple(measured)


def find_unseen(whole: ModelRun, gradients: Sequence[LagGradient]) -> tuple[Unseen, ...]:
    """The layers and directions that the lag gradients leave out, since the loss does not see them.

    The run is of the whole loss, the gradients of the last step's.
    """
    known = {g.key for g in gradients}
    backward = {p.name for p in whole.paths if p.direction}
    blind = []
    for p in whole.paths:
        if p.steps > 1 and (p.name, p.layer, p.direction) not in known:
            felt = (p.gradients(whole.loss) != 0).any(-1)  # (T, B), every row ending at T
            read = int((p.alive.cumsum(0) * felt).max())
            blind.append(Unseen(p.name, p.layer, p.direction, p.name in backward, read, p.steps))
    return tuple(blind)


def _check_finite(path: Path, d: Tensor) -> None:
    bad = torch.nonzero(~d.isfinite().all(-1))
    if not len(bad):
        return
    last, row = max(bad.tolist())
    before = path.steps - int(path.alive[:, row].sum())  # steps that the longest row has more
    t = path.steps - 1 - last if path.direction else last - before
    text = (
        f"the gradient by the state of {locate(path.name, path.layer)} is NaN or "
        f"infinity, going back first at step {t} (counted from 0)"
    )
    raise NotFiniteError(text, "gradient", path.name, t)


def _measure_path(path: Path, parts: list[Tensor], d: Tensor) -> LagGradient:
    norms, alive = d.double().norm(dim=-1).flip(0), path.alive.flip(0)  # (T, B) by lag
    usable = (norms[0] > 0) & (alive.sum(0) > 1)  # the others have no ratio, or no lag
    norms, alive = norms[:, usable], alive[:, usable]
    T = int(alive.sum(0).max())
    ratios, alive = (norms / norms[0]).log()[:T], alive[:T]
    logs = (torch.where(alive, ratios, 0).sum(1) / alive.sum(1)).tolist()
    return LagGradient(
        name=path.name,
        layer=path.layer,
        direction=path.direction,
        log10_rho_by_lag=tuple(v / math.log(10) for v in logs),
        horizon_e_steps=_find_horizon(logs, math.exp(-1)),
        horizon_1e3_steps=_find_horizon(logs, 1e-3),
        slope_nats_per_step=_fit_slope(logs),
        zero_share=float((norms[:T][alive] == 0).double().mean()),
        omega=_measure_omega(path, parts),
        rows_by_lag=tuple(alive.sum(1).tolist()),
    )


def _find_horizon(logs: list[float], share: float) -> int | None:
    return next((k for k, v in enumerate(logs) if v < math.log(share)), None)


def _fit_slope(logs: list[float]) -> float:
    """The slope of the line through the finite ones; -inf where only lag 0 is finite."""
    points = [(k, v) for k, v in enumerate(logs) if math.isfinite(v)]
    if len(points) < 2:
        return -math.inf
    middle = sum(k for k, _ in points) / len(points)
    above = sum((k - middle) * v for k, v in points)
    return above / sum((k - middle) ** 2 for k, _ in points)


def _measure_omega(path: Path, parts: list[Tensor]) -> float:
    """One step back from every state, through its own layer alone."""
    total = 0.0
    for chain, d in zip(path.chains, parts, strict=True):
        for t in range(len(d) - 1, 0, -1):
            after, before = chain.states[t + 1], chain.states[t]
            sent = d[t].unsqueeze(0).split([v.shape[-1] for v in after], -1)
            back = torch.autograd.grad(
                after, before, sent, retain_graph=True, materialize_grads=True
            )
            size = d[t].double().norm(dim=-1)
            ratio = torch.cat(back, -1)[0].double().norm(dim=-1) / size
            change = torch.where(size > 0, (ratio - 1).square(), 1.0)
            total += float(change[chain.alive[t] & chain.alive[t - 1]].sum())
    return total / int(path.alive[-1].sum())
