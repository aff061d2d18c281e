"""The rules on what reaches back in time: exploding, vanishing, written too weakly."""

from __future__ import annotations

import math
from collections.abc import Iterator

from throughtime.diagnosis.jacobians import Jacobians
from throughtime.diagnosis.lag_gradient import LagGradient
from throughtime.diagnosis.report import Report
from throughtime.diagnosis.trial import Trial
from throughtime.diagnosis.trouble import Trouble, where

LARGEST_RHO, LARGEST_EXPONENT = 10.0, 0.05
"""Above which gradients count as exploding."""


def exploding(report: Report, trial: Trial) -> Iterator[Trouble]:
    """rho above 10 at any lag, or a Lyapunov exponent above 0.05."""
    told: set[str] = set()
    for g in report.lag_gradients:
        own = _jacobians(report, g)
        if not _explodes(g, own):
            continue
        exponent = "" if own is None else f", Lyapunov exponent {_largest(own):+.3f}"
        sentence = (
            f"Exploding in {where(g.layer, g.direction, g.name)}: going back the gradient grows "
            f"up to 10^{g.largest_log10_rho:.1f} times{exponent}."
        )
        yield _reaching("exploding", g, sentence, trial, told)


def vanishing(report: Report, trial: Trial) -> Iterator[Trouble]:
    """rho below 1/1000 before the lag, where it does not explode."""
    told: set[str] = set()
    whole = ", the whole sequence" if report.lag == report.steps - 1 else ""
    for g in report.lag_gradients:
        if not _vanishes(g, report.lag) or _explodes(g, _jacobians(report, g)):
            continue
        sentence = (
            f"Vanishing in {where(g.layer, g.direction, g.name)}: the gradient falls below 1/1000 "
            f"after {g.horizon_1e3_steps} steps, and the task needs {report.lag}{whole}."
        )
        yield _reaching("vanishing", g, sentence, trial, told)


def written_too_weakly(report: Report, trial: Trial) -> Iterator[Trouble]:
    """Half of the gates' time scales above the lag, but nothing to be read of the input there.

    Silent for lags so far back that a sound memory would be under the noise line too, and for
    cells without a gate that keeps, whose time scales come from their mean Jacobian alone.
    """
    shares = {(m.name, t.layer, t.direction): t.share_above(report.lag)
              for m in report.modules for t in m.gates if t.kind == "gate"}  # fmt: skip
    sound = _leaky(report.lag)
    for c in report.capacities:
        key = (c.name, c.layer, c.direction)
        weak = c.r2_by_lag[report.lag] == 0 and sound > c.noise_line
        if not weak or shares.get(key, 0.0) < 0.5:
            continue
        advice = trial.words
        if key in trial.r2:
            advice += f": on a copy started so, r^2({report.lag}) is {trial.r2[key]:.2g}"
        yield Trouble(
            "written too weakly",
            c.name,
            f"Written too weakly in {where(c.layer, c.direction, c.name)}: {shares[key]:.0%} of "
            f"the time scales are above {report.lag} steps, but of the input {report.lag} steps "
            f"ago nothing can be read (r^2 below {c.noise_line:.2g}, where a single leaky unit "
            f"would have {sound:.2g}).",
            f"{advice}.",
        )


def _leaky(lag: int) -> float:
    """r^2(lag) of s_t = f s_{t-1} + u_t with time scale lag, for white u: (1 - f^2) f^(2 lag)."""
    return (1 - math.exp(-2 / lag)) * math.exp(-2)


def _jacobians(report: Report, g: LagGradient) -> Jacobians | None:
    own = (j for m in report.modules if m.name == g.name for j in m.jacobians)
    return next((j for j in own if (j.layer, j.direction) == (g.layer, g.direction)), None)


def _largest(own: Jacobians) -> float:
    return own.lyapunov_nats_per_step[0]


def _explodes(g: LagGradient, own: Jacobians | None) -> bool:
    if g.largest_log10_rho > math.log10(LARGEST_RHO):
        return True
    return own is not None and _largest(own) > LARGEST_EXPONENT


def _vanishes(g: LagGradient, lag: int) -> bool:
    return g.horizon_1e3_steps is not None and g.horizon_1e3_steps < lag


def _reaching(kind: str, g: LagGradient, sentence: str, trial: Trial, told: set[str]) -> Trouble:
    """The trouble, with what a new start gives; `told` has the starts already spelt out."""
    before = g.log10_rho_by_lag[trial.lag]
    new = trial.gradients.get((g.name, g.layer, g.direction))
    if new is None:
        return Trouble(kind, g.name, sentence, f"{trial.words}.", before)
    after, K = new.log10_rho_by_lag[trial.lag], new.horizon_1e3_steps
    beginning = "The same start" if trial.words in told else trial.words
    told.add(trial.words)
    still = "" if K is None or K >= trial.lag else " still"
    advice = (
        f"{beginning}: on a copy started so, the gradient {trial.lag} steps back is "
        f"10^{after:.1f} of the last step's where it was 10^{before:.1f}, and it{still} falls "
        f"below 1/1000 {'nowhere in the sequence' if K is None else f'after {K} steps'}."
    )
    return Trouble(kind, g.name, sentence, advice, before, after)
