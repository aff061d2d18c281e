"""The quantities of a report that are measured on a whole model, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from throughtime.diagnosis.observe.examined import Loss, Subject
from throughtime.diagnosis.quantities.capacity import MemoryCapacity, memory_capacity
from throughtime.diagnosis.quantities.clipping import Clipping, clipping, gradients
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, lag_gradients
from throughtime.diagnosis.quantities.weight_lags import WeightLags, weight_lags
from throughtime.diagnosis.report import Band, Missing
from throughtime.errors import OptionError, ThroughtimeError
from throughtime.layers.initialise import initialise

BATCHES, ROWS, LARGEST = 3, 2, 2e7
"""Batches of a band; rows whose weight gradient is split by lag; the most numbers read back from
noise, above which it takes minutes."""

Value = TypeVar("Value")
Other = TypeVar("Other")


class Gaps:
    """What could not be measured so far."""

    def __init__(self) -> None:
        self.missing: list[Missing] = []

    def attempt(
        self, quantity: str, name: str, otherwise: Other, measure: Callable[[], Value]
    ) -> Value | Other:
        """The quantity, or `otherwise` where it cannot be measured; then the reason is recorded."""
        try:
            return measure()
        except ThroughtimeError as error:
            self.missing.append(Missing(quantity, name, str(error)))
            return otherwise


def measure_bands(
    subject: Subject, batches: Sequence[Any], loss: Loss | None, first: Sequence[LagGradient]
) -> tuple[Band, ...]:
    """The spread of the lag gradients over the first batches.

    Args:
        subject: the model.
        batches: of which the first is the report's.
        loss: as `diagnose` takes it.
        first: the lag gradients of the first.

    Raises:
        OptionError: a single batch, or batches of which the loss sees different layers.
    """
    if len(batches) < 2:
        raise OptionError("a spread needs at least 2 batches, got 1")
    by_batch = [tuple(first)]
    for batch in batches[1:BATCHES]:
        by_batch.append(lag_gradients(subject.run(batch, loss, last_only=True)))
    keys = [[(g.name, g.layer, g.direction) for g in of_batch] for of_batch in by_batch]
    if any(k != keys[0] for k in keys):
        raise OptionError("the loss sees other layers on one batch than on another")
    return tuple(_make_band(same) for same in zip(*by_batch, strict=True))


def _make_band(same: Sequence[LagGradient]) -> Band:
    """Over the lags that all batches have."""
    curves = [*zip(*(g.log10_rho_by_lag for g in same), strict=False)]
    return Band(
        name=same[0].name,
        layer=same[0].layer,
        direction=same[0].direction,
        batches=len(same),
        lowest_log10_rho_by_lag=tuple(map(min, curves)),
        highest_log10_rho_by_lag=tuple(map(max, curves)),
    )


def measure_torch_default(
    model: nn.Module, batch: Any, loss: Loss | None
) -> tuple[LagGradient, ...]:
    """The lag gradients of a copy whose recurrent layers have torch's own start.

    The rest of the copy is as in the model; torch's generator stays as it is.

    Raises:
        OptionError: weights that are parametrised, or what `lag_gradients` refuses.
    """
    subject = Subject(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in subject.modules.values():
            initialise(module, "torch")
    return lag_gradients(subject.run(batch, loss, last_only=True))


def measure_capacities(subject: Subject, name: str, lag: int) -> tuple[MemoryCapacity, ...]:
    """Measure what each layer of a module remembers, up to the lag and twice its width.

    Raises:
        OptionError: a state so wide or a lag so long that it takes minutes; or what
            `memory_capacity` refuses.
    """
    layer = subject.layers[name]
    widest = max(sum(w) for w in layer.widths)
    lags = max(lag, 2 * widest)
    if lags * max(2500, 20 * widest) > LARGEST:
        raise OptionError(
            f"to read {lags} lags from a state of {widest} numbers takes minutes; call "
            f"throughtime.diagnosis.quantities.capacity.memory_capacity for it"
        )
    capacities = memory_capacity(layer, lags=lags)
    return tuple(replace(c, name=name) for c in capacities)


def measure_weight_lags(
    subject: Subject, name: str, batch: Any, loss: Loss | None
) -> tuple[WeightLags, ...]:
    """Measure where a module's weight gradient comes from, on two rows of a batch.

    Raises:
        OptionError: what `weight_lags` refuses.
    """
    lags = weight_lags(subject.modules[name], lambda: subject.value(batch, loss), ROWS)
    return tuple(replace(w, name=name) for w in lags)


def measure_clipping(
    subject: Subject, batches: Sequence[Any], loss: Loss | None, clip: float | None
) -> Clipping:
    """Measure what clipping does to the gradients of these batches.

    Raises:
        OptionError: what `clipping` refuses, such as a single batch.
    """

    def losses() -> Iterator[torch.Tensor]:
        return (subject.value(batch, loss) for batch in batches)

    return clipping(gradients(subject.model, losses()), clip)
