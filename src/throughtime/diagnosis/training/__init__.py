"""What the gradients of a model do in one training step of any training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.observe import Watch, WatchedCall, choose_rows
from throughtime.diagnosis.quantities.reach import Pulse, measure_pulses
from throughtime.diagnosis.verdict import LARGEST_RHO, MOVING, RATE, SATURATED, is_often
from throughtime.errors import OptionError, ShapeError
from throughtime.torch_private import norms

_LEAST = -45.0
"""Logged for the log10 of a gradient of exactly zero; below what float32 can hold."""


def find_trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def measure_norm(values: list[Any]) -> float:
    """The norm of all numbers of some tensors; infinite where a square overflows."""
    if not values:
        return 0.0
    with torch.no_grad():
        sizes = norms(values)
        return float(torch.stack([v.to(sizes[0]) for v in sizes]).norm())


def measure_updates(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """||delta theta|| / ||theta|| of every parameter that is not zero."""
    old = list(before.values())
    moved = norms([after[name].detach() - v for name, v in before.items()])
    sizes = [float(v) for v in norms(old)]
    triples = zip(before, moved, sizes, strict=True)
    return {n: float(v) / size for n, v, size in triples if size > 0}


def list_layer_values(pulses: Sequence[Pulse], lag: int | None) -> dict[str, float]:
    """Horizon, log10 rho at the lag and saturation of each layer and direction."""
    values: dict[str, float] = {}
    for pulse in pulses:
        if pulse.log10_rho:
            horizon = pulse.horizon_steps()
            values[f"horizon_steps/{pulse.place}"] = pulse.steps if horizon is None else horizon
            far = min(pulse.steps - 1, pulse.steps if lag is None else lag)
            values[f"log10_rho/{pulse.place}"] = max(_LEAST, pulse.at(far))
        if pulse.saturated is not None:
            values[f"saturated/{pulse.place}"] = pulse.saturated
    return values


UNSEEN = (
    "No recurrent layer was seen to run in a training step, so nothing is logged of them; one "
    "compiled before this training hides them: call torch.compiler.reset() before it."
)


def find_fired(
    pulses: Sequence[Pulse], lag: int | None, clipped: tuple[int, int], least_update: float | None
) -> Iterator[tuple[str, str]]:
    """Each rule that fires: its name with the place, and a sentence with the number.

    Args:
        pulses: of one training step.
        lag: how far back the task needs; None: each whole sequence.
        clipped: of how many steps something was clipped, and how many there were.
        least_update: the smallest ||delta theta|| / ||theta|| of the recurrent layers' matrices.
    """
    for pulse in pulses:
        place, share = pulse.place, pulse.saturated
        if pulse.log10_rho:
            yield from _check_reach(pulse, pulse.steps - 1 if lag is None else lag)
        still = least_update is not None and least_update < MOVING
        if still and share is not None and share > SATURATED:
            sentence = (
                f"Frozen gates in {place}: {share:.0%} of the values of a gate stand at an end, "
                f"and a matrix moved by {least_update:.1e} of its size."
            )
            yield f"frozen {place}", sentence
    count, steps = clipped
    if steps and is_often(count / steps, steps):
        share = count / steps
        sentence = f"Clipping: {share:.0%} of the steps were clipped, where {RATE:.0%} may be; "
        yield "clipping", sentence + "raise the threshold."


def _check_reach(pulse: Pulse, lag: int) -> Iterator[tuple[str, str]]:
    place, largest, K = pulse.place, max(pulse.log10_rho.values()), pulse.horizon_steps()
    if largest > math.log10(LARGEST_RHO):
        sentence = f"Exploding in {place}: going back the gradient grows up to 10^{largest:.1f} "
        yield f"exploding {place}", sentence + "times."
    elif K is not None and K < lag:
        sentence = f"Vanishing in {place}: the gradient falls below 1/1000 after {K} steps, "
        yield f"vanishing {place}", sentence + f"and the task needs {lag}."


class StepFlow:
    """Measures how far back one training step learns, and how far it moves the weights.

    Args:
        model: that is trained; its recurrent layers are hooked until `close`.
        lag: how many steps back the task needs; None: the whole sequence.
        tell: takes what cannot be measured and each rule that fires: its name, and a sentence.

    Raises:
        OptionError: the model has no recurrent layer.
    """

    def __init__(self, model: nn.Module, lag: int | None, tell: Callable[[str, str], None]) -> None:
        self._watch, self._model, self._lag, self._tell = Watch(model), model, lag, tell
        self._pulses: list[Pulse] = []
        self._before: dict[str, Tensor] | None = None

    @property
    def calls(self) -> list[WatchedCall]:
        """The calls of the recurrent layers in the step."""
        return self._watch.calls

    @property
    def measured(self) -> bool:
        """Whether `measure` was called in the step."""
        return self._before is not None

    def measure(self) -> None:
        """Measure the step: after its gradients, before its weights change."""
        self._pulses = self._pulses_of_calls()
        self._before = {n: p.detach().clone() for n, p in find_trained(self._model).items()}

    def values(self, step: int, clipped: tuple[int, int]) -> dict[str, float]:
        """What was measured, once the weights have moved; rules that fire are reported."""
        assert self._before is not None
        moved = measure_updates(self._before, find_trained(self._model))
        matrices = [v for n, v in moved.items() if self._before[n].dim() > 1]
        values = list_layer_values(self._pulses, self._lag)
        values |= {f"update/{name}": value for name, value in moved.items()}
        if matrices and min(matrices) > 0:
            values["update_spread"] = max(matrices) / min(matrices)
        for rule, sentence in find_fired(
            self._pulses, self._lag, clipped, min(matrices, default=None)
        ):
            self._tell(rule, f"Training step {step}: {sentence}")
        return values

    def forget(self) -> None:
        """Clear the step's measurements."""
        self._watch.clear()
        self._pulses, self._before = [], None

    def close(self) -> None:
        """Remove the hooks."""
        self._watch.close()

    def _pulses_of_calls(self) -> list[Pulse]:
        """The pulses of every module's last call."""
        pulses: list[Pulse] = []
        if not self.calls:
            self._tell("unseen", UNSEEN)
        for call in {c.name: c for c in self.calls}.values():
            try:
                pulses += measure_pulses(call.name, call.layer, choose_rows(call), self._lag)
            except (OptionError, ShapeError) as error:
                self._tell(f"unmeasured {call.name}", f"Nothing is logged of a layer: {error}.")
        return pulses


class LoopFlow:
    """A watcher of the plain training loop: steps 1, n + 1, 2 n + 1, ... are rows of the journal.

    It hooks the model in those steps only, and changes no bit of the run.

    Args:
        every: n, steps between rows.
    """

    enough = False

    def __init__(self, every: int) -> None:
        self._every = every
        self._warned: set[str] = set()
        self._flow: StepFlow | None = None
        self._sentences: list[str] = []
        self._seen, self._clipped = 0, 0  # since the last row

    def begin(self, journal: Any, log: Any) -> None:
        """Set where rows and sentences go."""
        self._journal, self._log = journal, log

    def before_step(self, learner: Any) -> None:
        if learner.done % self._every:
            return
        self._flow = StepFlow(learner.model, None, self._tell)
        # Gradients are by the outputs of the layers, so clipping does not change them.
        self._hook = learner.optimizer.register_step_pre_hook(self._measure)

    def _measure(self, *_: Any) -> None:
        assert self._flow is not None
        self._flow.measure()

    def after_step(self, learner: Any) -> None:
        self._seen += 1
        self._clipped += learner.clipped
        if self._flow is None:
            return
        self._hook.remove()
        clipped = self._clipped, self._seen
        values = {"gradient_norm": learner.norm, **self._flow.values(learner.done, clipped)}
        self._journal.row(step=learner.done, flow=values, says=self._sentences)
        self._flow.close()
        self._flow, self._sentences = None, []
        self._seen, self._clipped = 0, 0

    def after_validation(self, learner: Any, metrics: Mapping[str, float]) -> None:
        """Measures nothing."""

    def _tell(self, rule: str, sentence: str) -> None:
        if rule not in self._warned:
            self._warned.add(rule)
            self._log.info("%s", sentence)
            self._sentences.append(sentence)
