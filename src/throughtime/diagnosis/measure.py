"""One call on an unchanged model: everything measured, put in a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from throughtime.diagnosis.cure import find_start
from throughtime.diagnosis.model_quantities import (
    Gaps,
    measure_bands,
    measure_capacities,
    measure_clipping,
    measure_torch_default,
    measure_weight_lags,
)
from throughtime.diagnosis.observe import one_thread
from throughtime.diagnosis.observe.batches import list_batches
from throughtime.diagnosis.observe.examined import Loss, ModelRun, Subject
from throughtime.diagnosis.quantities.connectivity import connectivity
from throughtime.diagnosis.quantities.evenness import evenness
from throughtime.diagnosis.quantities.gates import gate_times
from throughtime.diagnosis.quantities.jacobians import jacobians
from throughtime.diagnosis.quantities.lag_gradient import Unseen, find_unseen, lag_gradients
from throughtime.diagnosis.report import QUANTITIES, Missing, ModuleReport, Report
from throughtime.diagnosis.verdict import locate
from throughtime.diagnosis.verdict.cured_copy import CuredCopy
from throughtime.diagnosis.verdict.verdict import find_cautions, find_troubles, make_fault_trouble
from throughtime.errors import NotFiniteError, OptionError, ShapeError
from throughtime.layers.recurrent import SequenceLayer
from throughtime.version import __version__

Value = TypeVar("Value")


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
    subject = Subject(model)
    try:
        run = subject.run(batches[0], loss, last_only=True)
        gradients = lag_gradients(run)
    except NotFiniteError as error:
        lag = _check_lag(lag, subject.sizes[0])
        return _report_fault(subject, CuredCopy(model, batches, loss, lag), truncation, error)
    last_lags = [g.last_lag for g in gradients]
    lag = _check_lag(lag, 1 + (min(last_lags) if lag is None else max(last_lags)))
    trial = CuredCopy(model, batches, loss, lag)
    report = replace(
        _make_empty(model, subject, lag, truncation),
        loss=run.loss.item(),
        lag_gradients=gradients,
        lengths=_list_lengths(run),
    )
    report = _with_panels(report, subject, run, trial, clip, before)
    report = replace(report, troubles=find_troubles(report, trial))
    return replace(report, cautions=find_cautions(report))


def _list_lengths(run: ModelRun) -> tuple[int, ...]:
    """Steps of each row of the first module, where they differ."""
    first = next(iter(run.batches.values()))
    return () if first.lengths is None else tuple(first.lengths.tolist())


def _with_panels(
    report: Report, subject: Subject, run: ModelRun, trial: CuredCopy, clip: float | None,
    before: Mapping[str, Tensor] | None,
) -> Report:  # fmt: skip
    """The report with every quantity that can be measured, and the reasons for the others."""
    gaps, model, data, loss = Gaps(), trial.model, trial.batches, trial.loss
    layers, batches, gradients = subject.layers, run.batches, report.lag_gradients
    attempt, each = gaps.attempt, partial(_measure_each, gaps, run)
    modules = tuple(_measure_module(gaps, n, model, layers[n], run) for n in batches)
    spread = attempt("bands", "", (), lambda: measure_bands(subject, data, loss, gradients))
    default = attempt("torch_default", "", (), lambda: measure_torch_default(model, data[0], loss))
    whole = subject.run(data[0], loss)
    even = attempt("evenness", "", None, lambda: evenness(subject, whole, before))
    blind = find_unseen(whole, gradients)
    gaps.missing += [*_list_left_out(subject, run), *_list_seen_late(blind, report.lag)]
    subject.free()
    return replace(
        report,
        bands=spread,
        torch_default=default,
        connectivity=each("connectivity", lambda n: (connectivity(layers[n], batches[n], name=n),)),
        modules=modules,
        capacities=each("capacities", lambda n: measure_capacities(subject, n, trial.lag)),
        weight_lags=each("weight_lags", lambda n: measure_weight_lags(subject, n, data[0], loss)),
        clipping=attempt("clipping", "", None, lambda: measure_clipping(subject, data, loss, clip)),
        evenness=even,
        unseen=blind,
        missing=tuple(gaps.missing),
    )


def _list_left_out(subject: Subject, run: ModelRun) -> Iterator[Missing]:
    """Modules without any measurement, or without lags."""
    for name in subject.modules:
        if name not in run.batches:
            yield Missing("modules", name, "it did not run on the first batch")
    for name in subject.others:
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
                f"the loss reads {locate(u.layer, u.direction, '')} after {u.read_steps} of its "
                f"{u.steps} steps at the latest, and lags are counted from the last",
            )


def _measure_each(
    gaps: Gaps, run: ModelRun, quantity: str, measure: Callable[[str], Sequence[Value]]
) -> tuple[Value, ...]:
    """A quantity of every module that runs whole sequences."""
    values: list[Value] = []
    for name in run.batches:
        if name in run.apart:
            gaps.missing.append(Missing(quantity, name, run.apart[name]))
        else:
            values += gaps.attempt(quantity, name, (), partial(measure, name))
    return tuple(values)


def _measure_module(
    gaps: Gaps, name: str, model: nn.Module, layer: SequenceLayer, run: ModelRun
) -> ModuleReport:
    only, batch = ModelRun(run.loss, (), {name: run.batches[name]}, run.apart), run.batches[name]
    return ModuleReport(
        name=name,
        cell=repr(layer.cell),
        hidden_sizes=tuple(layer.hidden_sizes),
        start=find_start(model.get_submodule(name)),
        jacobians=_measure_each(gaps, only, "jacobians", lambda _: jacobians(layer, batch)),
        gates=gaps.attempt("gates", name, (), lambda: gate_times(layer, batch)),
    )


def _make_empty(model: nn.Module, subject: Subject, lag: int, truncation: int | None) -> Report:
    """A report in which nothing is measured yet."""
    T, B = subject.sizes
    return Report(
        model=type(model).__name__,
        steps=T,
        rows=B,
        lag=lag,
        loss=None,
        truncation=truncation,
        lag_gradients=(),
        bands=(),
        torch_default=(),
        connectivity=(),
        modules=(),
        capacities=(),
        weight_lags=(),
        clipping=None,
        evenness=None,
        troubles=(),
        missing=(),
        parameters=sum(p.numel() for p in model.parameters()),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _report_fault(
    subject: Subject, trial: CuredCopy, truncation: int | None, error: NotFiniteError
) -> Report:
    """The report of a model that reaches NaN or infinity, without any measurement."""
    empty = _make_empty(trial.model, subject, trial.lag, truncation)
    missing = tuple(Missing(quantity, "", str(error)) for quantity in QUANTITIES)
    return replace(empty, troubles=(make_fault_trouble(error, trial),), missing=missing)


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
