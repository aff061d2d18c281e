"""The verdict: which trouble the numbers show, and what a change would do, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from throughtime.diagnosis.cure import CuredCopy
from throughtime.diagnosis.report import Report, Trouble
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


def find_troubles(report: Report, cured: CuredCopy) -> tuple[Trouble, ...]:
    """Apply the rules in order.

    Args:
        report: all but its troubles.
        cured: of the same model and batches.
    """
    return tuple(trouble for rule in RULES for trouble in rule(report, cured))


def find_cautions(report: Report) -> tuple[Trouble, ...]:
    """Findings that are no trouble, but no health either."""
    return tuple(remembers_little(report))


def make_fault_trouble(error: NotFiniteError, cured: CuredCopy) -> Trouble:
    """The trouble that ends every measurement: the first tensor with NaN or infinity.

    Args:
        error: the fault.
        cured: of the same model and batches; measured where another start may help.
    """
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
