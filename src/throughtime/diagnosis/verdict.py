"""The verdict: which trouble the numbers of a report show, and what a change would do, measured.

One rule a trouble: on reach back in time, on training, on single units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from throughtime.diagnosis.cure import CuredCopy
from throughtime.diagnosis.observe import Key, locate
from throughtime.diagnosis.quantities.clipping import Clipping
from throughtime.diagnosis.quantities.evenness import Evenness
from throughtime.diagnosis.quantities.gates import GateTimes
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, Unseen
from throughtime.diagnosis.report import Report, Trouble
from throughtime.errors import NotFiniteError

LARGEST_RHO, LARGEST_EXPONENT, DOUBLED, HELD = 10.0, 0.05, 2.0, 0.05
"""Limits above which gradients explode: rho, or the exponent where rho has doubled; r^2 at the lag
below which little is remembered."""


def not_seen(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """Layers and directions of which the loss reads only the first steps, or nothing."""
    for u in report.unseen:
        if not u.is_trouble(report.lag):
            continue
        place = locate(*u.key)
        sentence = f"The loss cannot see {place}: its gradient by every state of it is zero."
        if u.read_steps:
            inputs = "one input only" if u.read_steps == 1 else f"{u.read_steps} inputs"
            end = f"at the {'beginning' if u.direction else 'end'} of the sequence"
            sentence = (
                f"The loss cannot see the end of {place}: it looks at it after {u.read_steps} of "
                f"its {u.steps} steps at the latest, when it has read {inputs}, and never after "
                f"its own last step, {end}. What is read later is not learnt from."
            )
        yield Trouble("not seen", u.name, sentence, _advise_reading(u))


def _advise_reading(u: Unseen) -> str:
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


def exploding(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """rho above 10 at any lag, or above 2 with a Lyapunov exponent above 0.05."""
    spelled_out: set[str] = set()
    for g in report.lag_gradients:
        if not _explodes(report, g):
            continue
        largest = _find_exponent(report, g)
        exponent = "" if largest is None else f", Lyapunov exponent {largest:+.3f}"
        sentence = (
            f"Exploding in {locate(*g.key)}: going back the gradient grows "
            f"up to 10^{g.largest_log10_rho:.1f} times{exponent}."
        )
        yield _make_trouble("exploding", g, sentence, cured, spelled_out)


def vanishing(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """rho below 1/1000 before the lag, where it does not explode."""
    spelled_out: set[str] = set()
    for g in report.lag_gradients:
        need = min(report.lag, g.last_lag)
        if g.horizon_1e3_steps is None or g.horizon_1e3_steps >= need or _explodes(report, g):
            continue
        whole = ", the whole sequence" if need == g.last_lag else ""
        sentence = (
            f"Vanishing in {locate(*g.key)}: the gradient falls below 1/1000 "
            f"after {g.horizon_1e3_steps} steps, and the task needs {need}{whole}."
        )
        yield _make_trouble("vanishing", g, sentence, cured, spelled_out)


def written_too_weakly(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """Half of the gates' time scales above the lag, but nothing of the input readable there.

    Silent for lags so long that a sound memory would be below the noise line too, and for cells
    without a gate that keeps, whose time scales come from their mean Jacobian alone.
    """
    shares = {(m.name, t.layer, t.direction): t.share_above(report.lag)
              for m in report.modules for t in m.gates if t.kind == "gate"}  # fmt: skip
    sound, blind = _find_leaky_r2(report.lag), {u.key for u in report.unseen}
    for c in report.capacities:
        key = c.key
        if key in blind:
            continue
        weak = c.r2_by_lag[report.lag] == 0 and sound > c.noise_line
        if not weak or shares.get(key, 0.0) < 0.5:
            continue
        advice = cured.words
        if key in cured.r2:
            advice += f": on a copy started so, r^2({report.lag}) is {cured.r2[key]:.2g}"
        yield Trouble(
            "written too weakly",
            c.name,
            f"Written too weakly in {locate(*c.key)}: {shares[key]:.0%} of "
            f"the time scales are above {report.lag} steps, but of the input {report.lag} steps "
            f"ago nothing can be read (r^2 below {c.noise_line:.2g}, where a single leaky unit "
            f"would have {sound:.2g}).",
            f"{advice}.",
        )


def remembers_little(report: Report) -> Iterator[Trouble]:
    """r^2(lag) under a twentieth in every layer: a caution, no trouble.

    One event that stands out can still be carried so far, every input cannot. Silent where
    another trouble has to be mended first.
    """
    blind = {u.key for u in report.unseen}
    r2_by_place = {c.key: c.r2_by_lag[report.lag] for c in report.capacities if c.key not in blind}
    first = {"not finite", "not seen", "exploding", "vanishing", "written too weakly"}
    if (
        not r2_by_place
        or max(r2_by_place.values()) >= HELD
        or first & {t.kind for t in report.troubles}
    ):
        return
    name, layer, direction = max(r2_by_place, key=lambda place: r2_by_place[place])
    most = r2_by_place[name, layer, direction]
    r2 = f"{most:.2g}" if most else "0"
    yield Trouble(
        "remembers little",
        name,
        f"Gradients reach back, but little is remembered: of inputs {report.lag} steps ago a "
        f"linear read-out finds r^2({report.lag}) = {r2} at most, in "
        f"{locate(name, layer, direction)}, where 1 is everything.",
        "One event that stands out can be carried so far all the same. Where the task needs many "
        "of the inputs in between, give it the input of so long ago besides the present one "
        "(dilation, attention) or more units.",
    )


def _find_leaky_r2(lag: int) -> float:
    """r^2(lag) of s_t = f s_{t-1} + u_t with time scale lag, for white u: (1 - f^2) f^(2 lag)."""
    return (1 - math.exp(-2 / lag)) * math.exp(-2)


def _find_exponent(report: Report, g: LagGradient) -> float | None:
    """The largest Lyapunov exponent of a layer and direction; None where none was measured."""
    exponents = {(m.name, j.layer, j.direction): j.lyapunov_nats_per_step[0]
                 for m in report.modules for j in m.jacobians}  # fmt: skip
    return exponents.get(g.key)


def _explodes(report: Report, g: LagGradient) -> bool:
    """Judged by the gradient itself, which may shrink while the states grow.

    Below a bidirectional layer gradients also arrive at every step directly; there the exponent
    must agree.
    """
    exponent, size = _find_exponent(report, g), g.largest_log10_rho
    if size > math.log10(DOUBLED) and exponent is not None and exponent > LARGEST_EXPONENT:
        return True
    return size > math.log10(LARGEST_RHO) and not _below_both_ways(report, g)


def _below_both_ways(report: Report, g: LagGradient) -> bool:
    module = next((m for m in report.modules if m.name == g.name), None)
    if module is None or g.layer + 1 == len(module.hidden_sizes):
        return False
    return any(times.direction for times in module.gates)


def _make_trouble(
    kind: str, g: LagGradient, sentence: str, cured: CuredCopy, spelled_out: set[str]
) -> Trouble:
    """The trouble, with the effect of a new start; `spelled_out`: starts already described."""
    lag, before = min(cured.lag, g.last_lag), g.at(cured.lag)
    new = cured.gradients.get(g.key)
    if new is None or new.last_lag < lag:
        return Trouble(kind, g.name, sentence, f"{cured.words}.", before)
    after, K = new.at(lag), new.horizon_1e3_steps
    beginning = "The same start" if cured.words in spelled_out else cured.words
    spelled_out.add(cured.words)
    still = "" if K is None or K >= lag else " still"
    advice = (
        f"{beginning}: on a copy started so, the gradient {lag} steps back is "
        f"10^{after:.1f} of the last step's where it was 10^{before:.1f}, and it{still} falls "
        f"below 1/1000 {'nowhere in the sequence' if K is None else f'after {K} steps'}."
    )
    return Trouble(kind, g.name, sentence, advice, before, after)


POINTS, RATE, BIAS, CHANCE = 0.9, 0.2, 0.3, 0.01
"""The least cosine of a truncated gradient; the largest clip rate and bias; the chance, at that
rate, of so many clipped batches below which the threshold is blamed."""


def truncation(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """Back-propagation truncated as the user's gives a gradient of another direction."""
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


def clipping(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """The mean gradient changes by 0.3 of its length, or more than one batch in five is clipped.

    A binomial test compares the rate with one in five, since of few batches some may be clipped.
    """
    c = report.clipping
    if c is None or c.threshold is None or c.clip_rate is None or c.mean_bias is None:
        return
    if not is_often(c.clip_rate, len(c.norms)) and c.mean_bias <= BIAS:
        return
    low = c.threshold < min(c.norms) / 10
    yield Trouble(
        "clipping",
        "",
        f"Clipping at {c.threshold:.3g} {'is far too low: it ' if low else ''}changes "
        f"{c.clip_rate:.0%} of the gradients, whose median norm is {c.median_norm:.3g}, and the "
        f"mean by {c.mean_bias:.2f} of its length.",
        _advise_clipping(c, cured),
    )


def is_often(rate: float, batches: int) -> bool:
    """Whether so high a rate is no chance where one batch in five is clipped."""
    clipped = round(rate * batches)
    chances = (math.comb(batches, k) * RATE**k * (1 - RATE) ** (batches - k)
               for k in range(clipped, batches + 1))  # fmt: skip
    return sum(chances) < CHANCE


def _advise_clipping(c: Clipping, cured: CuredCopy) -> str:
    norms = torch.tensor(c.norms, dtype=torch.float64, device="cpu")
    threshold = float(norms.quantile(0.9))
    new = cured.clipping(threshold)
    noise = "The raw gradient is noise: mend the Jacobian first. " if c.is_noise else ""
    # With a threshold below the norm of the mean gradient UClip's carry grows without end.
    carried = c.threshold is not None and c.threshold > c.mean_norm
    return (
        f"{noise}Clip {'with throughtime.UClip, or ' if carried else ''}at the 90th percentile of "
        f"the norms, {threshold:.3g}: on the same batches that changes {new.clip_rate or 0:.0%} of "
        f"the gradients and the mean by {new.mean_bias or 0:.2f} of its length."
    )


SATURATED, MOVING, DEAD = 0.5, 1e-5, 0.1
"""Limits: share of a gate's values at its ends; its update per weight; share of dead units."""


def frozen_gates(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """Gates with half of their values at an end and weights that hardly move."""
    if report.evenness is None:
        return
    what, blind = report.evenness.kind, {u.key for u in report.unseen}
    for key, times in _list_gates(report):
        if key in blind:  # it does not move since the loss does not see it
            continue
        ratios = {s.name: (s.share_low + s.share_high, find_motion(report.evenness, key, s.name))
                 for s in times.saturation if s.name != "state"}  # fmt: skip
        frozen = {n: (share, moved) for n, (share, moved) in ratios.items()
                  if share > SATURATED and moved is not None and moved < MOVING}  # fmt: skip
        if not frozen:
            continue
        share = min(share for share, _ in frozen.values())
        moved = max(moved or 0.0 for _, moved in frozen.values())
        yield Trouble(
            "frozen gates",
            key[0],
            f"Frozen gates in {locate(*key)}: {share:.0%} or more of the values of "
            f"{', '.join(frozen)} stand at an end, and the {what} is at most {moved:.1g} of their "
            f"weights.",
            _advise_gates(cured, key, "+".join(frozen)),
        )


def dead_units(report: Report, cured: CuredCopy) -> Iterator[Trouble]:
    """One unit in ten, or more, whose output does not move."""
    for key, times in _list_gates(report):
        dead, units = len(times.dead_units), len(times.unit_deviations)
        if not units or dead / units < DEAD:
            continue
        after = cured.dead_units.get(key)
        result = "" if after is None else f": on a copy started so, {after} of {units} are dead"
        words = f"{cured.words}{result}."
        if after is not None and after >= dead:
            words = (
                f"A new start does not help, {after} of {units} are dead on a copy from "
                f"throughtime.cure too. {_advise_inputs(cured, key, units)}"
            )
        yield Trouble(
            "dead units",
            key[0],
            f"Dead units in {locate(*key)}: {dead} of {units} outputs deviate by "
            f"less than 0.001 over all steps and rows.",
            words,
        )


def _advise_inputs(cured: CuredCopy, key: Key, units: int) -> str:
    """The module's inputs in words, and the dead units of the copy if they were standardised."""
    inputs = cured.inputs.get(key[0])
    if inputs is None:
        return "Look at the scale and sign of the module's inputs."
    words = f"The module's inputs have mean {inputs.mean:.2g} and deviation {inputs.deviation:.2g}"
    if inputs.deviation == 0:
        return f"{words}: look at what comes before it."
    after = inputs.dead_units[key]
    helps = "Standardise them" if after < DEAD * units else "To standardise them does not help"
    return f"{words}. {helps}: {after} of {units} are then dead on that copy."


def find_motion(evenness: Evenness, key: Key, gates: str) -> float | None:
    """The largest ratio of the blocks of gates joined by +; None where none is known.

    Gradients scale with the loss, so they are divided by the largest that reaches the states of
    the layer; updates are not.
    """
    names = gates.split("+")
    blocks = (s for s in evenness.shares
              if (s.name, s.layer, s.direction) == key and s.gate in names)  # fmt: skip
    ratios = [s.ratio for s in blocks if s.ratio is not None]
    if not ratios:
        return None
    if evenness.kind == "update":
        return max(ratios)
    reaching = [n for d in evenness.depth if d.key == key for n in d.norms]
    size = max(reaching, default=0.0)
    return max(ratios) / size if size else None


def _list_gates(report: Report) -> Iterator[tuple[Key, GateTimes]]:
    return (((m.name, t.layer, t.direction), t) for m in report.modules for t in m.gates)


def _advise_gates(cured: CuredCopy, key: Key, gates: str) -> str:
    after = cured.evenness and find_motion(cured.evenness, key, gates)
    advice = f"Lower the learning rate. {cured.words}"
    if after is None:
        return f"{advice}."
    return f"{advice}: on a copy started so, the gradient is up to {after:.1g} of their weights."


RULES: tuple[Callable[[Report, CuredCopy], Iterator[Trouble]], ...] = (
    not_seen, exploding, vanishing, written_too_weakly, frozen_gates, dead_units, truncation,
    clipping,
)  # fmt: skip
"""In the order of the verdict; what is not finite comes before them, and then alone."""

_CAUSES = {
    "parameter": "Load the last good weights, and lower the learning rate or clip the gradient.",
    "input": "Look at the data and at what comes before the layer.",
    "state": "The weights make the states grow without end.",
    "output": "Look at what comes after the recurrent layers.",
    "loss": "Look at the loss: a logarithm or a division of zero, or a target that is no number.",
    "gradient": "The backward pass leaves what numbers can hold, or the loss has no slope there.",
}


def find_troubles(report: Report, cured: CuredCopy) -> tuple[Trouble, ...]:
    """The troubles of a report, in the order of the rules."""
    return tuple(trouble for rule in RULES for trouble in rule(report, cured))


def make_fault_trouble(error: NotFiniteError, cured: CuredCopy) -> Trouble:
    """The trouble that ends every measurement; the cured copy is measured where it may help."""
    text = str(error)
    name = "" if error.tensor == "parameter" else error.name
    advice = _CAUSES[error.tensor]
    if error.tensor in ("parameter", "state", "gradient") and cured.gradients:
        worst = min(cured.gradients.values(), key=lambda g: g.at(cured.lag))
        advice += (
            f" {cured.words}: a copy started so is finite, with a gradient {cured.lag} steps back "
            f"of 10^{worst.at(cured.lag):.1f} of the last step's or more."
        )
    return Trouble("not finite", name, f"{text[0].upper()}{text[1:]}.", advice)
