"""How far back it learns: the gradient of the last step's loss by the states before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.diagnosis.path import Path
from throughtime.diagnosis.subject import Seen
from throughtime.diagnosis.trouble import where
from throughtime.errors import NotFiniteError, OptionError, ShapeError


@dataclass(frozen=True)
class LagGradient:
    """rho(k) = exp(mean over rows of ln(||dL/ds_{T-k}|| / ||dL/ds_T||)) of one direction.

    L is the loss at the last step only, s all states of the cell side by side.

    Attributes:
        name: the module's name in the model.
        layer: number of the layer in it.
        direction: 0 forward; 1 backward, where T is the first step and k counts forward.
        log10_rho_by_lag: log10 rho(k), k = 0 to T - 1; -inf where any row's gradient is zero.
        horizon_e_steps: the first k with rho(k) < 1/e; None where there is none in the sequence.
        horizon_1e3_steps: likewise for 1e-3.
        slope_nats_per_step: of the least-squares line through ln rho(k) over the finite lags.
        zero_share: of all lags and rows, gradients that are exactly zero.
        omega: sum over steps of (||d_t J_t|| / ||d_t|| - 1)^2, d_t = dL/ds_t, mean over rows;
            a zero gradient counts 1.
    """

    name: str
    layer: int
    direction: int
    log10_rho_by_lag: tuple[float, ...]
    horizon_e_steps: int | None
    horizon_1e3_steps: int | None
    slope_nats_per_step: float
    zero_share: float
    omega: float

    @property
    def largest_log10_rho(self) -> float:
        """Of all lags; far above 0 where gradients explode."""
        return max(self.log10_rho_by_lag)


def lag_gradients(seen: Seen) -> tuple[LagGradient, ...]:
    """Measure every layer and direction whose last step the loss depends on.

    Args:
        seen: of `Subject.run(..., last_only=True)`.

    Raises:
        ShapeError: sequences of one step, which have no lag.
        OptionError: the loss depends on no layer's last step, or a gradient is not finite.

    Source: Pascanu, Mikolov and Bengio, On the Difficulty of Training Recurrent Neural Networks
    (2013), its equation 9 for Omega.
    """
    if len(seen.paths[0].x) < 2:
        raise ShapeError("a lag needs sequences of at least 2 steps, got 1")
    found = [(p, p.gradients(seen.loss)) for p in seen.paths]
    for path, d in found:
        if not bool(d.isfinite().all()):
            own = int(torch.nonzero(~d.isfinite().flatten(1).all(1)).max())
            t = len(d) - 1 - own if path.direction else own
            text = (
                f"the gradient by the state of {where(path.layer, 0, path.name)} is NaN or "
                f"infinity, going back first at step {t} (counted from 0)"
            )
            raise NotFiniteError(text, "gradient", path.name, t)
    told = [(p, d) for p, d in found if bool((d[-1] != 0).any())]
    if not told:
        raise OptionError(
            "the loss sends no gradient to the last step of any recurrent layer, from which lags "
            "are counted; give batches whose last step has a target"
        )
    return tuple(_of_path(p, d) for p, d in told)


def _of_path(path: Path, d: Tensor) -> LagGradient:
    norms = d.double().norm(dim=-1).flip(0)  # (T, B) by lag
    norms = norms[:, norms[0] > 0]  # a row of which the loss is blind has no ratio
    logs = (norms / norms[0]).log().mean(1).tolist()
    return LagGradient(
        name=path.name,
        layer=path.layer,
        direction=path.direction,
        log10_rho_by_lag=tuple(v / math.log(10) for v in logs),
        horizon_e_steps=_horizon(logs, math.exp(-1)),
        horizon_1e3_steps=_horizon(logs, 1e-3),
        slope_nats_per_step=_slope(logs),
        zero_share=float((norms == 0).double().mean()),
        omega=_omega(path, d),
    )


def _horizon(logs: list[float], share: float) -> int | None:
    return next((k for k, v in enumerate(logs) if v < math.log(share)), None)


def _slope(logs: list[float]) -> float:
    """Of the line through the finite ones; -inf when there is only lag 0 of them."""
    points = [(k, v) for k, v in enumerate(logs) if math.isfinite(v)]
    if len(points) < 2:
        return -math.inf
    middle = sum(k for k, _ in points) / len(points)
    above = sum((k - middle) * v for k, v in points)
    return above / sum((k - middle) ** 2 for k, _ in points)


def _omega(path: Path, d: Tensor) -> float:
    """One step back from every state, through its own layer alone."""
    total = 0.0
    for t in range(len(d) - 1, 0, -1):
        after, before = path.states[t + 1], path.states[t]
        sent = d[t].unsqueeze(0).split([v.shape[-1] for v in after], -1)
        back = torch.autograd.grad(after, before, sent, retain_graph=True, materialize_grads=True)
        size = d[t].double().norm(dim=-1)
        ratio = torch.cat(back, -1)[0].double().norm(dim=-1) / size
        total += float(torch.where(size > 0, (ratio - 1).square(), 1.0).mean())
    return total
