"""The rules on what reaches back in time: exploding, vanishing, written too weakly."""

from __future__ import annotations

import math
from collections.abc import Iterator

from throughtime.diagnosis.quantities.jacobians import Jacobians
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, Unseen
from throughtime.diagnosis.report.report import Report
from throughtime.diagnosis.verdict.cured_copy import Trial
from throughtime.diagnosis.verdict.trouble import Trouble, where

LARGEST_RHO, LARGEST_EXPONENT, DOUBLED, HELD = 10.0, 0.05, 2.0, 0.05
"""Above which gradients count as exploding: rho, or the exponent where rho has doubled; r^2 at the
lag under which little is remembered."""


def not_seen(report: Report, trial: Trial) -> Iterator[Trouble]:
    """Layers and directions of which the loss reads the first steps alone, or nothing."""
    for u in report.unseen:
        if not u.is_trouble(report.lag):
            continue
        place = where(u.layer, u.direction, u.name)
        sentence = f"The loss cannot see {place}: its gradient by every state of it is zero."
        if u.read_steps:
            inputs = "one input only" if u.read_steps == 1 else f"{u.read_steps} inputs"
            end = f"at the {'beginning' if u.direction else 'end'} of the sequence"
            sentence = (
                f"The loss cannot see the end of {place}: it looks at it after {u.read_steps} of "
                f"its {u.steps} steps at the latest, when it has read {inputs}, and never after "
                f"its own last step, {end}. What is read later is not learnt from."
            )
        yield Trouble("not seen", u.name, sentence, _to_be_read(u))


def _to_be_read(u: Unseen) -> str:
    if not u.read_steps:
        return (
            "Let the loss depend on its output or final state, or leave it out; a detached output "
            "or a unit that is shut, as a ReLU below 0, hides it too."
        )
    if u.both_ways:
        return (
            "Read each direction at its own end: the final states of both (h_n), or the forward "
            "half of the output at the last step and the backward half at the first, or the mean "
            "over all steps."
        )
    return "Read its last output or its final state, or the mean over all steps."


def exploding(report: Report, trial: Trial) -> Iterator[Trouble]:
    """rho above 10 at any lag, or above 2 with a Lyapunov exponent above 0.05."""
    told: set[str] = set()
    for g in report.lag_gradients:
        known = _jacobians(report, g)
        if not _explodes(report, g):
            continue
        exponent = "" if known is None else f", Lyapunov exponent {_largest(known):+.3f}"
        sentence = (
            f"Exploding in {where(g.layer, g.direction, g.name)}: going back the gradient grows "
            f"up to 10^{g.largest_log10_rho:.1f} times{exponent}."
        )
        yield _reaching("exploding", g, sentence, trial, told)


def vanishing(report: Report, trial: Trial) -> Iterator[Trouble]:
    """rho below 1/1000 before the lag, where it does not explode."""
    told: set[str] = set()
    for g in report.lag_gradients:
        need = min(report.lag, g.last_lag)
        if not _vanishes(g, need) or _explodes(report, g):
            continue
        whole = ", the whole sequence" if need == g.last_lag else ""
        sentence = (
            f"Vanishing in {where(g.layer, g.direction, g.name)}: the gradient falls below 1/1000 "
            f"after {g.horizon_1e3_steps} steps, and the task needs {need}{whole}."
        )
        yield _reaching("vanishing", g, sentence, trial, told)


def written_too_weakly(report: Report, trial: Trial) -> Iterator[Trouble]:
    """Half of the gates' time scales above the lag, but nothing to be read of the input there.

    Silent for lags so far back that a sound memory would be under the noise line too, and for
    cells without a gate that keeps, whose time scales come from their mean Jacobian alone.
    """
    shares = {(m.name, t.layer, t.direction): t.share_above(report.lag)
              for m in report.modules for t in m.gates if t.kind == "gate"}  # fmt: skip
    sound, blind = _leaky(report.lag), {(u.name, u.layer, u.direction) for u in report.unseen}
    for c in report.capacities:
        key = (c.name, c.layer, c.direction)
        if key in blind:
            continue
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


def remembers_little(report: Report) -> Iterator[Trouble]:
    """r^2(lag) under a twentieth in every layer: no trouble yet, but no health either.

    One event that stands out can still be carried so far, every input cannot. Silent where a
    trouble is named that has to be mended first.
    """
    blind = {(u.name, u.layer, u.direction) for u in report.unseen}
    held = {c.place: c.r2_by_lag[report.lag] for c in report.capacities if c.place not in blind}
    first = {"not finite", "not seen", "exploding", "vanishing", "written too weakly"}
    if not held or max(held.values()) >= HELD or first & {t.kind for t in report.troubles}:
        return
    name, layer, direction = max(held, key=lambda place: held[place])
    most = held[name, layer, direction]
    r2 = f"{most:.2g}" if most else "0"
    yield Trouble(
        "remembers little",
        name,
        f"Gradients reach back, but little is remembered: of inputs {report.lag} steps ago a "
        f"linear read-out finds r^2({report.lag}) = {r2} at most, in "
        f"{where(layer, direction, name)}, where 1 is everything.",
        "One event that stands out can be carried so far all the same. Where the task needs many "
        "of the inputs in between, give it the input of so long ago beside the present one "
        "(dilation, attention) or more units.",
    )


def _leaky(lag: int) -> float:
    """r^2(lag) of s_t = f s_{t-1} + u_t with time scale lag, for white u: (1 - f^2) f^(2 lag)."""
    return (1 - math.exp(-2 / lag)) * math.exp(-2)


def _jacobians(report: Report, g: LagGradient) -> Jacobians | None:
    own = (j for m in report.modules if m.name == g.name for j in m.jacobians)
    return next((j for j in own if (j.layer, j.direction) == (g.layer, g.direction)), None)


def _largest(own: Jacobians) -> float:
    return own.lyapunov_nats_per_step[0]


def _explodes(report: Report, g: LagGradient) -> bool:
    """By the gradient itself; states that grow do not make one explode that shrinks.

    Below a two-way layer gradients arrive at every step, the last ones too, and not by going back
    alone; there the exponent must agree.
    """
    known, size = _jacobians(report, g), g.largest_log10_rho
    grows = known is not None and _largest(known) > LARGEST_EXPONENT
    if size > math.log10(DOUBLED) and grows:
        return True
    return size > math.log10(LARGEST_RHO) and not _below_both_ways(report, g)


def _below_both_ways(report: Report, g: LagGradient) -> bool:
    module = next((m for m in report.modules if m.name == g.name), None)
    if module is None or g.layer + 1 == len(module.hidden_sizes):
        return False
    return any(times.direction for times in module.gates)


def _vanishes(g: LagGradient, lag: int) -> bool:
    return g.horizon_1e3_steps is not None and g.horizon_1e3_steps < lag


def _reaching(kind: str, g: LagGradient, sentence: str, trial: Trial, told: set[str]) -> Trouble:
    """The trouble, with what a new start gives; `told` has the starts already spelt out."""
    lag, before = min(trial.lag, g.last_lag), g.at(trial.lag)
    new = trial.gradients.get((g.name, g.layer, g.direction))
    if new is None or new.last_lag < lag:
        return Trouble(kind, g.name, sentence, f"{trial.words}.", before)
    after, K = new.at(lag), new.horizon_1e3_steps
    beginning = "The same start" if trial.words in told else trial.words
    told.add(trial.words)
    still = "" if K is None or K >= lag else " still"
    advice = (
        f"{beginning}: on a copy started so, the gradient {lag} steps back is "
        f"10^{after:.1f} of the last step's where it was 10^{before:.1f}, and it{still} falls "
        f"below 1/1000 {'nowhere in the sequence' if K is None else f'after {K} steps'}."
    )
    return Trouble(kind, g.name, sentence, advice, before, after)
