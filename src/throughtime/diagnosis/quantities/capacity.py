"""Linear memory capacity: how much of the past input a read-out of a layer's state recovers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.diagnosis.observe import LayerDirection
from throughtime.diagnosis.observe.steps import check_passage, eval_mode
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.layer import Passage

RIDGE = 1e-6
"""Ridge of the read-outs, in mean variances of the states."""


@dataclass(frozen=True)
class MemoryCapacity(LayerDirection):
    """What a linear read-out of a layer's state knows of the input k steps ago.

    Of the backward direction k steps ahead. Its name is empty outside of a report.

    Attributes:
        state_width: N, numbers in the state; the capacity is at most N.
        r2_by_lag: r^2(k) from k = 0 on, on held-out steps; 0 below the noise line.
        capacity: the sum of r^2(k) over the lags measured.
        memory_steps: the largest k with r^2(k) > 0.5; -1 when there is none.
        noise_line: 8 / n; r^2 below it is set to 0.
        held_out_steps: n.
    """

    state_width: int
    r2_by_lag: tuple[float, ...]
    capacity: float
    memory_steps: int
    noise_line: float
    held_out_steps: int

    @property
    def lags_suffice(self) -> bool:
        """Whether r^2 is 0 at the last lag, so that the capacity is complete."""
        return self.r2_by_lag[-1] == 0


def memory_capacity(
    layer: Passage, *, lags: int | None = None, scale: float = 1.0, seed: int = 0,
    samples: int | None = None,
) -> tuple[MemoryCapacity, ...]:  # fmt: skip
    """Drive a layer with noise and read the noise back, for every layer and direction of it.

    The input is u_t times a fixed drawn vector of length 1, u_t independent and uniform in
    [-scale, scale]; the states of a direction side by side are read by ridge regression.

    Args:
        layer: a recurrent layer of this package; it is run in eval mode.
        lags: the largest k, steps; left out, twice the width of the widest state.
        scale: the size of the input.
        seed: of the noise.
        samples: steps to fit on, and again to hold out; left out, max(2500, 20 N).

    Raises:
        OptionError: a number outside its rule, a cell with direct inputs, or states that are
            not finite.

    Source: Jaeger, Short Term Memory in Echo State Networks (2001).
    """
    check_passage(layer)
    widest = max((sum(w) for w in layer.widths), default=0)
    lags = 2 * widest if lags is None else lags
    samples = max(2500, 20 * widest) if samples is None else samples
    for name, value, least in (("lags", lags, 1), ("samples", samples, 16)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not 0 < scale < float("inf"):
        raise OptionError(f"scale must be a finite number above 0, got {scale!r}")
    if layer.cell.inputs:
        raise OptionError(
            f"{type(layer.cell).__name__} has direct inputs, and what they should be while the "
            f"layer is driven with noise is not known; its capacity cannot be measured"
        )
    u, states = _drive(layer, lags, scale, seed, samples)
    return tuple(
        read_back(s[:, :, d], u, lags, layer=number, direction=d)
        for number, s in enumerate(states)
        for d in range(layer.directions)
    )


@torch.no_grad()
def _drive(
    layer: Passage, lags: int, scale: float, seed: int, samples: int
) -> tuple[Tensor, list[Tensor]]:
    """The noise u (T, B), and for each layer its states (T, B, D, N); 16 rows run side by side."""
    rows = 16
    steps = 2 * max(lags, 100) + -(-2 * samples // rows)
    draw = torch.Generator().manual_seed(seed)
    u = scale * (2 * torch.rand(steps, rows, dtype=torch.float64, generator=draw, device="cpu") - 1)
    v = torch.randn(layer.input_size, dtype=torch.float64, generator=draw, device="cpu")
    like = next(layer.parameters(), torch.empty(0, device="cpu"))
    x = (u.unsqueeze(-1) * v / v.norm()).to(like)
    with eval_mode(layer):
        results = layer.carry(Batch(x), record=True)[1]
    return u, [torch.cat(r.sequences, -1).double().cpu() for r in results]


def read_back(
    states: Tensor, signal: Tensor, lags: int, *, layer: int = 0, direction: int = 0
) -> MemoryCapacity:
    """The same for any signal and states.

    The first half of the rows is fitted, the second held out; max(lags, 100) steps at both ends
    are left out.

    Args:
        states: (T, B, N).
        signal: (T, B).
        lags: the largest k, steps.

    Raises:
        ShapeError: too few rows or steps.
        OptionError: a signal that is constant or not finite, or states that are not finite.
    """
    T, B = signal.shape
    edge = max(lags, 100)
    _check(states, signal, lags, edge, layer)
    targets = _make_targets(signal.double(), lags, edge, -1 if direction else 1)
    fit, held_out = (slice(0, B // 2), slice(B // 2, B))
    if bool(
        (targets[:, fit].std((0, 1)) == 0).any() or (targets[:, held_out].std((0, 1)) == 0).any()
    ):
        raise OptionError("the signal is constant, so there is nothing to remember; give noise")
    s = states[edge : T - edge].double()
    guess = _fit(
        s[:, fit].flatten(0, 1), targets[:, fit].flatten(0, 1), s[:, held_out].flatten(0, 1)
    )
    truth = targets[:, held_out].flatten(0, 1)
    line = 8 / len(truth)
    r2 = [v if v >= line else 0.0 for v in _squared_correlation(guess, truth).tolist()]
    return MemoryCapacity(
        name="",
        layer=layer,
        direction=direction,
        state_width=states.shape[-1],
        r2_by_lag=tuple(r2),
        capacity=sum(r2),
        memory_steps=max((k for k, v in enumerate(r2) if v > 0.5), default=-1),
        noise_line=line,
        held_out_steps=len(truth),
    )


def _check(states: Tensor, signal: Tensor, lags: int, edge: int, layer: int) -> None:
    T, B = signal.shape
    if B < 2 or T < 2 * edge + 2:
        raise ShapeError(
            f"{lags} lags need at least 2 rows of {2 * edge + 2} steps, got {B} rows of {T}"
        )
    if not bool(states.isfinite().all() and signal.isfinite().all()):
        raise OptionError(f"the signal and the states of layer {layer} must be finite numbers")


def _make_targets(signal: Tensor, lags: int, edge: int, way: int) -> Tensor:
    """(T - 2 edge, B, lags + 1): at t and k, the signal at t - way k."""
    T = len(signal)
    return torch.stack([signal[edge - way * k : T - edge - way * k] for k in range(lags + 1)], -1)


def _fit(s: Tensor, targets: Tensor, held_out: Tensor) -> Tensor:
    """Ridge read-outs fitted on s (n, N) and targets (n, K), applied to the states held out."""
    mean = s.mean(0)
    s = s - mean
    covariance = s.T @ s
    ridge = RIDGE * float(covariance.trace()) / max(1, s.shape[1])
    if ridge == 0:  # a constant state recovers nothing
        return torch.zeros(len(held_out), targets.shape[1], dtype=s.dtype, device=s.device)
    eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    weights = torch.linalg.solve(covariance + ridge * eye, s.T @ (targets - targets.mean(0)))
    guess: Tensor = (held_out - mean) @ weights
    return guess


def _squared_correlation(guess: Tensor, truth: Tensor) -> Tensor:
    """r^2 of each column; 0 for a constant guess."""
    g, u = guess - guess.mean(0), truth - truth.mean(0)
    size = (g * g).sum(0) * (u * u).sum(0)
    return torch.where(size > 0, (g * u).sum(0) ** 2 / size.clamp_min(1e-300), 0)
