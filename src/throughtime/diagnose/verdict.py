"""The verdict: which trouble the numbers show, and what a new start would change, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from throughtime.diagnose.cure import cure
from throughtime.diagnose.jacobians import Jacobians
from throughtime.diagnose.lag_gradient import LagGradient

LARGEST_RHO, LARGEST_EXPONENT = 10.0, 0.05
"""Above which gradients count as exploding."""


@dataclass(frozen=True)
class Trouble:
    """One trouble and what would change it.

    Attributes:
        kind: "exploding" or "vanishing".
        name: the module's name in the model.
        sentence: the trouble with its number.
        advice: what to change, with the number measured on a copy that was started anew.
        log10_rho_before: log10 rho(lag) of the layer.
        log10_rho_after: the same on that copy; None where it could not be started or looked at.
    """

    kind: str
    name: str
    sentence: str
    advice: str
    log10_rho_before: float
    log10_rho_after: float | None


Measure = Callable[[nn.Module], Sequence[LagGradient]]


def troubles(
    model: nn.Module, lag: int, gradients: Sequence[LagGradient],
    exponents: dict[tuple[str, int, int], Jacobians], measure: Measure,
) -> tuple[Trouble, ...]:  # fmt: skip
    """Apply the rules in order: exploding, then vanishing; one trouble a layer and direction.

    Args:
        model: the user's, which stays as it is.
        lag: how far back the task needs, steps.
        gradients: of the model.
        exponents: its Jacobians by module, layer and direction, where they could be taken.
        measure: the lag gradients of a model on the same batches.
    """
    kinds = {id(g): _kind(g, lag, exponents) for g in gradients}
    if not any(kinds.values()):
        return ()
    after, words = _cured(model, lag, measure)
    found = []
    for g in gradients:
        kind = kinds[id(g)]
        if kind:
            new = after.get((g.name, g.layer, g.direction))
            before = g.log10_rho_by_lag[lag]
            said = _sentence(kind, g, lag, exponents.get((g.name, g.layer, g.direction)))
            found.append(Trouble(kind, g.name, said, _advice(words, lag, before, new), before, new))
    return tuple(found)


def _kind(g: LagGradient, lag: int, exponents: dict[tuple[str, int, int], Jacobians]) -> str | None:
    own = exponents.get((g.name, g.layer, g.direction))
    if g.largest_log10_rho > math.log10(LARGEST_RHO):
        return "exploding"
    if own is not None and own.lyapunov_nats_per_step[0] > LARGEST_EXPONENT:
        return "exploding"
    if g.horizon_1e3_steps is not None and g.horizon_1e3_steps < lag:
        return "vanishing"
    return None


def _sentence(kind: str, g: LagGradient, lag: int, own: Jacobians | None) -> str:
    where = f"layer {g.layer}{f' of {g.name}' if g.name else ''}"
    where += ", backward" if g.direction else ""
    if kind == "vanishing":
        return (
            f"Vanishing in {where}: the gradient falls below 1/1000 after {g.horizon_1e3_steps} "
            f"steps, and the task needs {lag}."
        )
    exponent = "" if own is None else f", Lyapunov exponent {own.lyapunov_nats_per_step[0]:+.3f}"
    return (
        f"Exploding in {where}: going back the gradient grows up to "
        f"10^{g.largest_log10_rho:.1f} times{exponent}."
    )


def _advice(words: str, lag: int, before: float, after: float | None) -> str:
    if after is None:
        return words
    return (
        f"{words}: on a copy started so, the gradient {lag} steps back is 10^{after:.1f} of the "
        f"last step's where it was 10^{before:.1f}."
    )


def _cured(
    model: nn.Module, lag: int, measure: Measure
) -> tuple[dict[tuple[str, int, int], float], str]:
    """log10 rho(lag) of a cured copy, and what was done to it; the generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            cured = cure(model, lag=lag)
            found = measure(cured.model)
        except (ValueError, TypeError) as error:
            return {}, f"No start could be tried on a copy ({error})"
    words = "; ".join(dict.fromkeys(s.words for s in cured.started))
    return {(g.name, g.layer, g.direction): g.log10_rho_by_lag[lag] for g in found}, (
        f"Start anew with throughtime.cure ({words})"
    )
