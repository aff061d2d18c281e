"""The verdict: which trouble the numbers show, and what a change would do, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from throughtime.diagnosis.report import Report
from throughtime.diagnosis.verdict import Trouble
from throughtime.diagnosis.verdict.cured_copy import CuredCopy
from throughtime.diagnosis.verdict.rules import (
    clipping,
    dead_units,
    exploding,
    frozen_gates,
    not_seen,
    remembers_little,
    truncation,
    vanishing,
    written_too_weakly,
)
from throughtime.errors import NotFiniteError

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


def find_troubles(report: Report, trial: CuredCopy) -> tuple[Trouble, ...]:
    """Apply the rules in order.

    Args:
        report: all but its troubles.
        trial: of the same model and batches.
    """
    return tuple(trouble for rule in RULES for trouble in rule(report, trial))


def find_cautions(report: Report) -> tuple[Trouble, ...]:
    """Findings that are no trouble, but no health either."""
    return tuple(remembers_little(report))


def make_fault_trouble(error: NotFiniteError, trial: CuredCopy) -> Trouble:
    """The trouble that ends every measurement: the first tensor with NaN or infinity.

    Args:
        error: the fault.
        trial: of the same model and batches; measured where another start may help.
    """
    text = str(error)
    name = "" if error.tensor == "parameter" else error.name
    advice = _CAUSES[error.tensor]
    if error.tensor in ("parameter", "state", "gradient") and trial.gradients:
        worst = min(trial.gradients.values(), key=lambda g: g.at(trial.lag))
        advice += (
            f" {trial.words}: a copy started so is finite, with a gradient {trial.lag} steps back "
            f"of 10^{worst.at(trial.lag):.1f} of the last step's or more."
        )
    return Trouble("not finite", name, f"{text[0].upper()}{text[1:]}.", advice)
