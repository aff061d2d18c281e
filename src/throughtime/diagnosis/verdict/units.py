"""The rules on what single units do: frozen gates, dead units."""

from __future__ import annotations

from collections.abc import Iterator

from throughtime.diagnosis.quantities.evenness import Evenness
from throughtime.diagnosis.quantities.gates import GateTimes
from throughtime.diagnosis.report.report import Report
from throughtime.diagnosis.verdict.cured_copy import Key, Trial
from throughtime.diagnosis.verdict.trouble import Trouble, where

SATURATED, MOVING, DEAD = 0.5, 1e-5, 0.1
"""Share of a gate's values at its ends; what it must learn beside its weights; share of units."""


def frozen_gates(report: Report, trial: Trial) -> Iterator[Trouble]:
    """Gates of which half stands at its ends and whose weights hardly move."""
    if report.evenness is None:
        return
    what, blind = report.evenness.kind, {(u.name, u.layer, u.direction) for u in report.unseen}
    for key, times in _gates(report):
        if key in blind:  # it stands still for want of a loss, not of a slope
            continue
        found = {s.name: (s.share_low + s.share_high, moving(report.evenness, key, s.name))
                 for s in times.saturation if s.name != "state"}  # fmt: skip
        frozen = {n: (share, moved) for n, (share, moved) in found.items()
                  if share > SATURATED and moved is not None and moved < MOVING}  # fmt: skip
        if not frozen:
            continue
        share = min(share for share, _ in frozen.values())
        moved = max(moved or 0.0 for _, moved in frozen.values())
        yield Trouble(
            "frozen gates",
            key[0],
            f"Frozen gates in {where(key[1], key[2], key[0])}: {share:.0%} or more of the values "
            f"of {', '.join(frozen)} stand at an end, and the {what} is at most {moved:.1g} of "
            f"their weights.",
            _thawed(trial, key, "+".join(frozen)),
        )


def dead_units(report: Report, trial: Trial) -> Iterator[Trouble]:
    """One unit in ten, or more, whose output does not move."""
    for key, times in _gates(report):
        dead, units = len(times.dead_units), len(times.unit_deviations)
        if not units or dead / units < DEAD:
            continue
        after = trial.dead_units.get(key)
        told = "" if after is None else f": on a copy started so, {after} of {units} are dead"
        words = f"{trial.words}{told}."
        if after is not None and after >= dead:
            words = (
                f"A new start does not help, {after} of {units} are dead on a copy from "
                f"throughtime.cure too. {_inputs(trial, key, units)}"
            )
        yield Trouble(
            "dead units",
            key[0],
            f"Dead units in {where(key[1], key[2], key[0])}: {dead} of {units} outputs deviate by "
            f"less than 0.001 over all steps and rows.",
            words,
        )


def _inputs(trial: Trial, key: Key, units: int) -> str:
    """What the module is given, and how the copy would do if that were standardised."""
    given = trial.inputs.get(key[0])
    if given is None:
        return "Look at the scale and sign of the module's inputs."
    size = f"mean {given.mean:.2g} and deviation {given.deviation:.2g}"
    said = f"The module's inputs have {size}"
    if given.deviation == 0:
        return f"{said}: look at what comes before it."
    after = given.dead_units[key]
    helps = "Standardise them" if after < DEAD * units else "To standardise them does not help"
    return f"{said}. {helps}: {after} of {units} are then dead on that copy."


def moving(found: Evenness, key: Key, gates: str) -> float | None:
    """The largest ratio of the blocks of gates joined by +; None where none is known.

    Gradients are as large as the loss is, so they count beside the largest that reaches the
    states of the layer; updates count as they are.
    """
    names = gates.split("+")
    own = [
        s.ratio
        for s in found.shares
        if (s.name, s.layer, s.direction) == key and s.gate in names and s.ratio is not None
    ]
    if not own:
        return None
    if found.kind == "update":
        return max(own)
    reaching = [n for d in found.depth if (d.name, d.layer, d.direction) == key for n in d.norms]
    size = max(reaching, default=0.0)
    return max(own) / size if size else None


def _gates(report: Report) -> Iterator[tuple[Key, GateTimes]]:
    return (((m.name, t.layer, t.direction), t) for m in report.modules for t in m.gates)


def _thawed(trial: Trial, key: Key, gates: str) -> str:
    after = trial.evenness and moving(trial.evenness, key, gates)
    advice = f"Lower the learning rate. {trial.words}"
    if after is None:
        return f"{advice}."
    return f"{advice}: on a copy started so, the gradient is up to {after:.1g} of their weights."
