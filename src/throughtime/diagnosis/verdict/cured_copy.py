"""What a new start would change: a cured copy of the model, measured when a rule needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from throughtime.diagnosis.cure import cure
from throughtime.diagnosis.model_quantities import measure_clipping
from throughtime.diagnosis.observe.examined import Loss, Subject
from throughtime.diagnosis.quantities.capacity import memory_capacity
from throughtime.diagnosis.quantities.clipping import Clipping
from throughtime.diagnosis.quantities.evenness import Evenness, evenness
from throughtime.diagnosis.quantities.gates import gate_times
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, lag_gradients
from throughtime.layers.batch import Batch

Value = TypeVar("Value")
Key = tuple[str, int, int]
"""Module, layer and direction."""
ROUNDING = 8.0
"""A deviation below this many units in the last place of the largest value is rounding."""


@dataclass(frozen=True)
class InputStatistics:
    """The inputs of a module of the copy.

    Attributes:
        mean: of all its numbers.
        deviation: their standard deviation; 0 where they never vary but by rounding.
        dead_units: how many units of each layer and direction are dead with every feature
            standardised to mean 0 and deviation 1; one that varies only by rounding is set to 0.
    """

    mean: float
    deviation: float
    dead_units: dict[Key, int]


@dataclass(frozen=True)
class CuredCopy:
    """The model, its batches, and how its cured copy would do on them.

    Attributes:
        model: the user's, which stays as it is.
        batches: of the report.
        loss: as `diagnose` takes it.
        lag: how far back the task needs, steps.

    The copy is drawn with seed 0; torch's generator stays as it is.
    """

    model: nn.Module
    batches: list[Any]
    loss: Loss | None
    lag: int

    @cached_property
    def _cured(self) -> tuple[Subject | None, str]:
        """The copy, and what was done to it or why nothing could be."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                cured = cure(self.model, lag=self.lag)
                subject = Subject(cured.model)
            except (ValueError, TypeError) as error:
                return None, f"No start could be tried on a copy ({error})"
        words = "; ".join(dict.fromkeys(s.words for s in cured.started))
        return subject, f"Start anew with throughtime.cure ({words})"

    @property
    def words(self) -> str:
        """What the cure does, as the beginning of an advice."""
        return self._cured[1]

    @cached_property
    def gradients(self) -> dict[Key, LagGradient]:
        """Lag gradients of the copy; empty where they could not be measured."""
        return self._measured({}, self._gradients)

    @cached_property
    def dead_units(self) -> dict[Key, int]:
        """How many units of the copy are dead."""
        return self._measured({}, self._dead_units)

    @cached_property
    def inputs(self) -> dict[str, InputStatistics]:
        """The inputs of each module of the copy."""
        return self._measured({}, self._inputs)

    @cached_property
    def r2(self) -> dict[Key, float]:
        """r^2(lag) of the copy."""
        return self._measured({}, self._r2)

    @cached_property
    def evenness(self) -> Evenness | None:
        """Of the copy, by its gradients."""
        return self._measured(None, lambda s: evenness(s, s.run(self.batches[0], self.loss)))

    def clipping(self, threshold: float) -> Clipping:
        """Of the model itself, at another threshold."""
        return measure_clipping(Subject(self.model), self.batches, self.loss, threshold)

    def _measured(self, otherwise: Value, measure: Callable[[Subject], Value]) -> Value:
        subject = self._cured[0]
        if subject is None:
            return otherwise
        try:
            return measure(subject)
        except (ValueError, TypeError):  # the copy cannot be measured
            return otherwise

    def _gradients(self, subject: Subject) -> dict[Key, LagGradient]:
        gradients = lag_gradients(subject.run(self.batches[0], self.loss, last_only=True))
        return {(g.name, g.layer, g.direction): g for g in gradients}

    def _dead_units(self, subject: Subject) -> dict[Key, int]:
        run = subject.run(self.batches[0], self.loss)
        return {key: count for name, batch in run.batches.items()
                for key, count in _count_dead(name, subject, batch).items()}  # fmt: skip

    def _inputs(self, subject: Subject) -> dict[str, InputStatistics]:
        statistics = {}
        for name, batch in subject.run(self.batches[0], self.loss).batches.items():
            dead = _count_dead(name, subject, batch._replace(x=_standardise(batch.x)))
            deviation = float(_find_deviation(batch.x, (0, 1, 2)))
            statistics[name] = InputStatistics(float(batch.x.double().mean()), deviation, dead)
        return statistics

    def _r2(self, subject: Subject) -> dict[Key, float]:
        return {(name, c.layer, c.direction): c.r2_by_lag[self.lag]
                for name, layer in subject.layers.items()
                for c in memory_capacity(layer, lags=max(self.lag, 2 * max(map(sum, layer.widths))))
                }  # fmt: skip


def _count_dead(name: str, subject: Subject, batch: Batch) -> dict[Key, int]:
    """Dead units of each layer and direction of a module."""
    return {(name, g.layer, g.direction): len(g.dead_units)
            for g in gate_times(subject.layers[name], batch)}  # fmt: skip


def _standardise(x: Tensor) -> Tensor:
    """(T, B, I) with every feature standardised to mean 0 and deviation 1, or set to 0."""
    deviation = _find_deviation(x, (0, 1))
    even = (x.detach().double() - x.detach().double().mean((0, 1))) / deviation
    return even.where(deviation > 0, 0).to(x.dtype)


def _find_deviation(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The standard deviation along some dimensions, in float64."""
    deviation = x.detach().double().std(dims, correction=0)
    digit = torch.finfo(x.dtype).eps * x.detach().abs().amax(dims)
    return deviation.where(deviation > ROUNDING * digit, 0)
