"""One call on an unchanged model: everything measured, put in a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from throughtime.diagnosis.cure import CuredCopy, find_start
from throughtime.diagnosis.observe import locate, one_thread
from throughtime.diagnosis.observe.batches import list_batches
from throughtime.diagnosis.observe.examined import ExaminedModel, Loss, ModelRun
from throughtime.diagnosis.quantities.capacity import MemoryCapacity, memory_capacity
from throughtime.diagnosis.quantities.clipping import measure_clipping
from throughtime.diagnosis.quantities.connectivity import connectivity
from throughtime.diagnosis.quantities.evenness import evenness
from throughtime.diagnosis.quantities.gates import gate_times
from throughtime.diagnosis.quantities.jacobians import jacobians
from throughtime.diagnosis.quantities.lag_gradient import (
    LagGradient,
    Unseen,
    find_unseen,
    lag_gradients,
)
from throughtime.diagnosis.quantities.weight_lags import WeightLags, weight_lags
from throughtime.diagnosis.report import QUANTITIES, Band, Missing, ModuleReport, Report
from throughtime.diagnosis.verdict import find_troubles, make_fault_trouble, remembers_little
from throughtime.environment import __version__
from throughtime.errors import NotFiniteError, OptionError, ShapeError, ThroughtimeError
from throughtime.layers import SequenceLayer
from throughtime.layers.initialise import initialise

BATCHES, ROWS, LARGEST = 3, 2, 2e7
"""Batches of a band; rows whose weight gradient is split by lag; the most numbers read back from
noise, above which it takes minutes."""

Value = TypeVar("Value")
Other = TypeVar("Other")


def diagnose(
    model: nn.Module, batches: Any, loss: Loss | None = None, lag: int | None = None, *,
    clip: float | None = None, truncation: int | None = None,
    before: Mapping[str, Tensor] | None = None,
) -> Report:  # fmt: skip
    """Measure how far back an unchanged model learns and remembers, and report what is wrong.

    The model runs in eval mode on a copy; its parameters, gradients, buffers, training flag and
    the state of torch's generators stay. A model that reaches NaN or infinity gets a report with
    that one trouble, naming the first step and tensor. Meanwhile torch has one thread, since more
    slow thousands of small steps.

    Args:
        model: a recurrent layer of torch.nn or of this package, or a module with some in it.
        batches: a batch or an iterable of them, of which the first is measured, up to three for
            the spread and up to 16 for clipping; a batch is the model's input, or a tuple of
            input and target; an input that is a tuple of tensors is several arguments.
        loss: called with output and target, or the output alone where there is no target; left
            out, a fixed random projection of the last output.
        lag: how many steps back the task needs; left out, the whole sequence.
        clip: the norm at which training clips the gradient; left out, only norms and noise are
            measured.
        truncation: over how many steps training back-propagates; left out, over all.
        before: parameter's name -> its value some steps of training ago, as a state_dict has it;
            with it, evenness is that of the update since, else that of the gradient.

    Raises:
        TypeError, OptionError, ShapeError: the model, batch or an option cannot be measured.

    Source: Pascanu, Mikolov and Bengio, On the Difficulty of Training Recurrent Neural Networks
    (2013); the files of the quantities name theirs.
    """
    _check(loss, clip, truncation, before)
    with one_thread():
        return _measure(model, list_batches(batches), loss, lag, clip, truncation, before)


def _measure(
    model: nn.Module, batches: list[Any], loss: Loss | None, lag: int | None,
    clip: float | None, truncation: int | None, before: Mapping[str, Tensor] | None,
) -> Report:  # fmt: skip
    """The report of checked arguments."""
    examined = ExaminedModel(model)
    try:
        run = examined.run(batches[0], loss, last_only=True)
        gradients = lag_gradients(run)
    except NotFiniteError as error:
        lag = _check_lag(lag, examined.sizes[0])
        return _report_fault(examined, CuredCopy(model, batches, loss, lag), truncation, error)
    last_lags = [g.last_lag for g in gradients]
    lag = _check_lag(lag, 1 + (min(last_lags) if lag is None else max(last_lags)))
    cured = CuredCopy(model, batches, loss, lag)
    report = replace(
        _make_empty(model, examined, lag, truncation),
        loss=run.loss.item(),
        lag_gradients=gradients,
        lengths=_list_lengths(run),
    )
    report = _with_panels(report, examined, run, cured, clip, before)
    report = replace(report, troubles=find_troubles(report, cured))
    return replace(report, cautions=tuple(remembers_little(report)))


def _list_lengths(run: ModelRun) -> tuple[int, ...]:
    """Steps of each row of the first module, where they differ."""
    first = next(iter(run.batches.values()))
    return () if first.lengths is None else tuple(first.lengths.tolist())


def _with_panels(
    report: Report, examined: ExaminedModel, run: ModelRun, cured: CuredCopy, clip: float | None,
    before: Mapping[str, Tensor] | None,
) -> Report:  # fmt: skip
    """The report with every quantity that can be measured, and the reasons for the others."""
    gaps, model, data, loss = Gaps(), cured.model, cured.batches, cured.loss
    layers, batches, gradients = examined.layers, run.batches, report.lag_gradients
    attempt, each = gaps.attempt, partial(_measure_each, gaps, run)
    modules = tuple(_measure_module(gaps, n, model, layers[n], run) for n in batches)
    spread = attempt("bands", "", (), lambda: _measure_bands(examined, data, loss, gradients))
    default = attempt("torch_default", "", (), lambda: _measure_torch_default(model, data[0], loss))
    whole = examined.run(data[0], loss)
    even = attempt("evenness", "", None, lambda: evenness(examined, whole, before))
    blind = find_unseen(whole, gradients)
    gaps.missing += [*_list_left_out(examined, run), *_list_seen_late(blind, report.lag)]
    examined.free()
    return replace(
        report,
        bands=spread,
        torch_default=default,
        connectivity=each("connectivity", lambda n: (connectivity(layers[n], batches[n], name=n),)),
        modules=modules,
        capacities=each("capacities", lambda n: _measure_capacities(examined, n, cured.lag)),
        weight_lags=each("weight_lags", lambda n: _measure_weight_lags(examined, n, data[0], loss)),
        clipping=attempt(
            "clipping", "", None, lambda: measure_clipping(examined, data, loss, clip)
        ),
        evenness=even,
        unseen=blind,
        missing=tuple(gaps.missing),
    )


def _list_left_out(examined: ExaminedModel, run: ModelRun) -> Iterator[Missing]:
    """Modules without any measurement, or without lags."""
    for name in examined.modules:
        if name not in run.batches:
            yield Missing("modules", name, "it did not run on the first batch")
    for name in examined.others:
        yield Missing(
            "modules", name,
            "it is of a subclass of torch's own class, which may compute something else",
        )  # fmt: skip
    for name in dict.fromkeys(p.name for p in run.paths if p.steps < 2):
        yield Missing("lag_gradients", name, "it is given sequences of one step, without a lag")


def _list_seen_late(blind: Sequence[Unseen], lag: int) -> Iterator[Missing]:
    """Layers that the loss sees far enough, but not to the end."""
    for u in blind:
        if not u.is_trouble(lag):
            yield Missing(
                "lag_gradients",
                u.name,
                f"the loss reads {locate('', u.layer, u.direction)} after {u.read_steps} of its "
                f"{u.steps} steps at the latest, and lags are counted from the last",
            )


def _measure_each(
    gaps: Gaps, run: ModelRun, quantity: str, measure: Callable[[str], Sequence[Value]]
) -> tuple[Value, ...]:
    """A quantity of every module that runs whole sequences."""
    values: list[Value] = []
    for name in run.batches:
        values += _measure_whole(gaps, run, quantity, name, partial(measure, name))
    return tuple(values)


def _measure_whole(
    gaps: Gaps, run: ModelRun, quantity: str, name: str, measure: Callable[[], Sequence[Value]]
) -> Sequence[Value]:
    """A quantity of one module; none where it does not run whole sequences."""
    if name in run.not_whole:
        gaps.missing.append(Missing(quantity, name, run.not_whole[name]))
        return ()
    return gaps.attempt(quantity, name, (), measure)


def _measure_module(
    gaps: Gaps, name: str, model: nn.Module, layer: SequenceLayer, run: ModelRun
) -> ModuleReport:
    batch = run.batches[name]
    whole = _measure_whole(gaps, run, "jacobians", name, lambda: jacobians(layer, batch))
    return ModuleReport(
        name=name,
        cell=repr(layer.cell),
        hidden_sizes=tuple(layer.hidden_sizes),
        start=find_start(model.get_submodule(name)),
        jacobians=tuple(whole),
        gates=gaps.attempt("gates", name, (), lambda: gate_times(layer, batch)),
    )


def _make_empty(
    model: nn.Module, examined: ExaminedModel, lag: int, truncation: int | None
) -> Report:
    """A report in which nothing is measured yet."""
    T, B = examined.sizes
    return Report(
        model=type(model).__name__,
        steps=T,
        rows=B,
        lag=lag,
        loss=None,
        truncation=truncation,
        parameters=sum(p.numel() for p in model.parameters()),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _report_fault(
    examined: ExaminedModel, cured: CuredCopy, truncation: int | None, error: NotFiniteError
) -> Report:
    """The report of a model that reaches NaN or infinity, without any measurement."""
    empty = _make_empty(cured.model, examined, cured.lag, truncation)
    missing = tuple(Missing(quantity, "", str(error)) for quantity in QUANTITIES)
    return replace(empty, troubles=(make_fault_trouble(error, cured),), missing=missing)


def _check_lag(lag: int | None, steps: int) -> int:
    if steps < 2:
        raise ShapeError(f"a lag needs sequences of at least 2 steps, got {steps}")
    if lag is None:
        return steps - 1
    if isinstance(lag, bool) or not isinstance(lag, int) or not 1 <= lag < steps:
        raise OptionError(f"lag must be a number of steps from 1 to {steps - 1}, got {lag!r}")
    return lag


def _check(loss: Any, clip: Any, truncation: Any, before: Any) -> None:
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of output and target, got {loss!r}")
    number = isinstance(clip, int | float) and not isinstance(clip, bool)
    if clip is not None and not (number and 0 < clip < math.inf):
        raise OptionError(f"clip must be a finite number above 0, got {clip!r}")
    steps = isinstance(truncation, int) and not isinstance(truncation, bool)
    if truncation is not None and not (steps and truncation >= 1):
        raise OptionError(f"truncation must be a positive number of steps, got {truncation!r}")
    if before is not None and not isinstance(before, Mapping):
        raise OptionError(
            f"before must be a state_dict, parameters by name, got {type(before).__name__}"
        )


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


def _measure_bands(
    examined: ExaminedModel, batches: Sequence[Any], loss: Loss | None, first: Sequence[LagGradient]
) -> tuple[Band, ...]:
    """The spread of the lag gradients over the first batches; `first`: those of the first."""
    if len(batches) < 2:
        raise OptionError("a spread needs at least 2 batches, got 1")
    by_batch = [tuple(first)]
    for batch in batches[1:BATCHES]:
        by_batch.append(lag_gradients(examined.run(batch, loss, last_only=True)))
    keys = [[g.key for g in of_batch] for of_batch in by_batch]
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


def _measure_torch_default(
    model: nn.Module, batch: Any, loss: Loss | None
) -> tuple[LagGradient, ...]:
    """The lag gradients of a copy whose recurrent layers have torch's own start."""
    examined = ExaminedModel(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in examined.modules.values():
            initialise(module, "torch")
    return lag_gradients(examined.run(batch, loss, last_only=True))


def _measure_capacities(examined: ExaminedModel, name: str, lag: int) -> tuple[MemoryCapacity, ...]:
    """Measure what each layer of a module remembers, up to the lag and twice its width."""
    layer = examined.layers[name]
    widest = max(sum(w) for w in layer.widths)
    lags = max(lag, 2 * widest)
    if lags * max(2500, 20 * widest) > LARGEST:
        raise OptionError(
            f"to read {lags} lags from a state of {widest} numbers takes minutes; call "
            f"throughtime.diagnosis.quantities.capacity.memory_capacity for it"
        )
    capacities = memory_capacity(layer, lags=lags)
    return tuple(replace(c, name=name) for c in capacities)


def _measure_weight_lags(
    examined: ExaminedModel, name: str, batch: Any, loss: Loss | None
) -> tuple[WeightLags, ...]:
    """Measure where a module's weight gradient comes from, on two rows of a batch."""
    lags = weight_lags(examined.modules[name], lambda: examined.value(batch, loss), ROWS)
    return tuple(replace(w, name=name) for w in lags)
