"""Which rules of the verdict fire while a model trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from throughtime.diagnosis.pulse import Pulse
from throughtime.diagnosis.rules_reach import LARGEST_RHO
from throughtime.diagnosis.rules_training import RATE, often
from throughtime.diagnosis.rules_units import MOVING, SATURATED

UNSEEN = (
    "No recurrent layer was seen to run in a training step, so nothing is logged of them; one "
    "compiled before this training hides them: call torch.compiler.reset() before it."
)
SCALED = (
    "Gradients of a scaled loss are not looked at where the optimizer itself unscales them, so "
    "nothing is logged; give it fused=False, or train in bf16-mixed."
)


def fired(
    found: Sequence[Pulse], lag: int | None, clipped: tuple[int, int], least_update: float | None
) -> Iterator[tuple[str, str]]:
    """Each rule that fires: its name with the place, and a sentence with the number.

    Args:
        found: the pulses of one training step.
        lag: how far back the task needs; None: each whole sequence.
        clipped: of how many steps something was clipped, and how many there were.
        least_update: the smallest ||delta theta|| / ||theta|| of the recurrent layers' matrices.
    """
    for pulse in found:
        if pulse.log10_rho:
            yield from _of_reach(pulse, pulse.steps - 1 if lag is None else lag)
        if (
            pulse.saturated is not None
            and pulse.saturated > SATURATED
            and least_update is not None
            and least_update < MOVING
        ):
            yield (
                f"frozen {pulse.place}",
                (
                    f"Frozen gates in {pulse.place}: {pulse.saturated:.0%} of the values of a gate "
                    f"stand at an end, and a matrix moved by {least_update:.1e} of its size."
                ),
            )
    count, steps = clipped
    if steps and often(count / steps, steps):
        sentence = (
            f"Clipping: {count / steps:.0%} of the steps were clipped, where {RATE:.0%} may be; "
            "raise the threshold."
        )
        yield "clipping", sentence


def _of_reach(pulse: Pulse, lag: int) -> Iterator[tuple[str, str]]:
    largest = max(pulse.log10_rho.values())
    horizon = pulse.horizon_steps()
    if largest > math.log10(LARGEST_RHO):
        yield (
            f"exploding {pulse.place}",
            (
                f"Exploding in {pulse.place}: going back the gradient grows up to 10^{largest:.1f} "
                f"times."
            ),
        )
    elif horizon is not None and horizon < lag:
        yield (
            f"vanishing {pulse.place}",
            (
                f"Vanishing in {pulse.place}: the gradient falls below 1/1000 after {horizon} "
                f"steps, and the task needs {lag}."
            ),
        )
