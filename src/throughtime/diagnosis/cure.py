"""The cure: an untrained copy of a model whose recurrent layers start so that they reach back.

And what it would change: the copy measured, when a rule of the verdict needs it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from throughtime.diagnosis.observe import Key
from throughtime.diagnosis.observe.batches import check_plain, make_copy_error
from throughtime.diagnosis.observe.examined import ExaminedModel, Loss, ModelRun
from throughtime.diagnosis.quantities.capacity import memory_capacity
from throughtime.diagnosis.quantities.clipping import Clipping, measure_clipping
from throughtime.diagnosis.quantities.evenness import Evenness, evenness
from throughtime.diagnosis.quantities.gates import gate_times
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, lag_gradients
from throughtime.errors import OptionError
from throughtime.layers.batch import Batch
from throughtime.layers.drop_in.convert import from_torch
from throughtime.layers.initialise import Startable, initialise

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report

_STARTS: WeakKeyDictionary[nn.Module, tuple[str, bytes]] = WeakKeyDictionary()
"""Words and weights of each start; kept here, so that nothing is added to a user's module."""


def remember(layer: nn.Module, words: str) -> None:
    """Record in words how a layer's present weights were initialised."""
    _STARTS[layer] = words, _fingerprint(layer)


def find_start(layer: nn.Module) -> str:
    """The start that `cure` gave a layer, in words.

    Empty without one, and as soon as a weight has changed: loaded, initialised or trained. Copies
    of the layer, also from a file, have none.
    """
    words, weights = _STARTS.get(layer, ("", b""))
    return words if words and _fingerprint(layer) == weights else ""


def _fingerprint(layer: nn.Module) -> bytes:
    """A hash of a layer's weights, the same on every device and in every wider dtype."""
    digest = blake2b()
    for p in layer.parameters():
        digest.update(p.detach().double().cpu().contiguous().numpy().tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Started:
    """The new start of one recurrent layer.

    Attributes:
        name: the layer's name in the model; empty when it is the model.
        recipe: "timescales", "orthogonal", "identity", or "none" where its cell has no start
            but its own.
        words: the same as a sentence, with its numbers.
    """

    name: str
    recipe: str
    words: str


@dataclass(frozen=True)
class Cure:
    """A cured copy, and what was done to it.

    Attributes:
        model: the copy; torch's layers in it stay torch's.
        lag_steps: how far back it is to reach.
        started: each recurrent layer's new start; nothing with keep_weights.
        kept: names of the other modules that hold weights and are frozen or have no
            `reset_parameters`, so they keep the weights they had; with keep_weights every one
            that holds weights.
    """

    model: nn.Module
    lag_steps: int
    started: tuple[Started, ...]
    kept: tuple[str, ...]


def cure(
    model: nn.Module, report: Report | None = None, lag: int | None = None,
    keep_weights: bool = False,
) -> Cure:  # fmt: skip
    """Start a copy of a model anew, so that gradients reach `lag` steps back.

    A cell with gates that keep its state gets time scales log-uniform from 2 to 3 x lag steps, and
    orthogonal matrices where it has recurrent ones; any other cell, and a gated one with
    bias=False, orthogonal matrices, or with relu the identity, and biases 0. A cell with neither
    gets its own start. All else is started by its own `reset_parameters`, and what is frozen is
    left as it is. The numbers come from torch's generator.

    Args:
        model: any module with layers or cells of this package or of torch.nn; left as it is.
        report: whose lag is taken where `lag` is not given.
        lag: steps.
        keep_weights: change no weight. Every cure here is a start, so the copy is then equal to
            the model.

    Raises:
        TypeError: the model is no module, or the report none.
        OptionError: no lag, no recurrent layer that trains, or one whose weights are
            parametrised; a model that is compiled, wrapped, or that torch cannot copy.

    Source: as `throughtime.initialise`.
    """
    check_plain(model)
    if report is not None and not hasattr(report, "lag"):
        raise TypeError(f"report must be a Report, got {report!r}; name the lag: lag={report!r}")
    lag = report.lag if lag is None and report is not None else lag
    if isinstance(lag, bool) or not isinstance(lag, int) or lag < 1:
        raise OptionError(f"lag must be a positive number of steps, or in a report, got {lag!r}")
    new, layers = _copy(model)
    if keep_weights:
        return Cure(new, lag, (), tuple(n for n, m in new.named_modules() if _has_weights(m)))
    layers = {n: m for n, m in layers.items() if not _frozen(m)}
    if not layers:
        raise OptionError(
            "every weight of the recurrent layers is frozen, so a new start would stay untrained; "
            "unfreeze them first"
        )
    started = {id(m) for layer in layers.values() for m in layer.modules()}
    kept = [n for n, m in new.named_modules() if id(m) not in started and not _restart(m)]
    started_layers = tuple(_start(n, m, lag) for n, m in layers.items())
    for layer_start in started_layers:
        remember(new.get_submodule(layer_start.name), layer_start.words.partition(": ")[2])
    return Cure(new, lag, started_layers, tuple(kept))


def _copy(model: nn.Module) -> tuple[nn.Module, dict[str, Startable]]:
    """A copy of a model, and its recurrent layers by name."""
    try:
        new = copy.deepcopy(model)
    except RuntimeError as error:
        raise make_copy_error(error) from error
    layers = dict(_find_recurrent(new))
    if not layers:
        raise OptionError("the model has no recurrent layer of throughtime or torch.nn to cure")
    return new, layers


def _find_recurrent(model: nn.Module) -> Iterator[tuple[str, Startable]]:
    """Name and layer; torch's as one of this package's that holds the same parameters."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) and not isinstance(module, Startable):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of hooks, which stay where they are
                module = from_torch(module, in_place=True)
        if isinstance(module, Startable):
            yield name, module


def _has_weights(module: nn.Module) -> bool:
    return next(iter(module.parameters(recurse=False)), None) is not None


def _frozen(module: nn.Module) -> bool:
    """Whether it has weights, and none of them trains."""
    trains = [p.requires_grad for p in module.parameters()]
    return bool(trains) and not any(trains)


def _restart(module: nn.Module) -> bool:
    """Reset a module; returns whether it now has no old weights."""
    if not _has_weights(module):
        return True
    if _frozen(module):
        return False
    reset = getattr(module, "reset_parameters", None)
    if not callable(reset):
        return False
    with torch.no_grad():
        reset()
    return True


def _start(name: str, layer: Startable, lag: int) -> Started:
    """A new start, in float32 at least: there are no orthogonal matrices in half precision."""
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    if dtype in (torch.float32, torch.float64):
        return _initialise(name, layer, lag)
    layer.float()
    started = _initialise(name, layer, lag)
    layer.to(dtype)
    return started


def _initialise(name: str, layer: Startable, lag: int) -> Started:
    initialise(layer, "torch")
    cell = layer.cell
    kind, far = type(cell).__name__, 3 * lag
    if cell.keeps and (layer.bias or not set(cell.keeps) & set(cell.gates)):
        matrices: Literal["orthogonal"] | None
        matrices = "orthogonal" if cell.layout.recurrent_gates else None
        initialise(layer, matrices, timescales=(2, far))
        words = f"{kind}: time scales of 2 to {far} steps"
        return Started(name, "timescales", words + (", orthogonal matrices" if matrices else ""))
    if not cell.layout.recurrent_gates:
        return Started(name, "none", f"{kind}: its own start, since it has no matrix to set")
    if cell.arguments.get("activation") == "relu":
        initialise(layer, "identity")
        return Started(name, "identity", f"{kind}: the identity, which relu carries on unchanged")
    initialise(layer, "orthogonal")
    return Started(name, "orthogonal", f"{kind}: orthogonal matrices, biases 0")


Value = TypeVar("Value")
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
    def _cured(self) -> tuple[ExaminedModel | None, str]:
        """The copy, and what was done to it or why nothing could be."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                cured = cure(self.model, lag=self.lag)
                examined = ExaminedModel(cured.model)
            except (ValueError, TypeError) as error:
                return None, f"No start could be tried on a copy ({error})"
        words = "; ".join(dict.fromkeys(s.words for s in cured.started))
        return examined, f"Start anew with throughtime.cure ({words})"

    @property
    def words(self) -> str:
        """What the cure does, as the beginning of an advice."""
        return self._cured[1]

    def _measure(self, measure: Callable[[ExaminedModel], Value]) -> Value | None:
        """None where the copy could not be made, or cannot be measured."""
        if (examined := self._cured[0]) is None:
            return None
        try:
            return measure(examined)
        except (ValueError, TypeError):
            return None

    def _run(self, examined: ExaminedModel, last_only: bool = False) -> ModelRun:
        return examined.run(self.batches[0], self.loss, last_only=last_only)

    @cached_property
    def gradients(self) -> dict[Key, LagGradient]:
        """Lag gradients of the copy; empty where they could not be measured."""
        gradients = self._measure(lambda e: lag_gradients(self._run(e, last_only=True)))
        return {g.key: g for g in gradients or ()}

    @cached_property
    def dead_units(self) -> dict[Key, int]:
        """How many units of the copy are dead."""
        return self._measure(lambda e: {
            key: count for name, batch in self._run(e).batches.items()
            for key, count in _count_dead(name, e, batch).items()
        }) or {}  # fmt: skip

    @cached_property
    def inputs(self) -> dict[str, InputStatistics]:
        """The inputs of each module of the copy."""
        return self._measure(lambda e: {
            name: _describe_inputs(name, e, batch) for name, batch in self._run(e).batches.items()
        }) or {}  # fmt: skip

    @cached_property
    def r2(self) -> dict[Key, float]:
        """r^2(lag) of the copy."""
        return self._measure(lambda e: {
            (name, c.layer, c.direction): c.r2_by_lag[self.lag] for name, layer in e.layers.items()
            for c in memory_capacity(layer, lags=max(self.lag, 2 * max(map(sum, layer.widths))))
        }) or {}  # fmt: skip

    @cached_property
    def evenness(self) -> Evenness | None:
        """Of the copy, by its gradients."""
        return self._measure(lambda e: evenness(e, self._run(e)))

    def clipping(self, threshold: float) -> Clipping:
        """Of the model itself, at another threshold."""
        return measure_clipping(ExaminedModel(self.model), self.batches, self.loss, threshold)


def _describe_inputs(name: str, examined: ExaminedModel, batch: Batch) -> InputStatistics:
    dead = _count_dead(name, examined, batch._replace(x=_standardise(batch.x)))
    deviation = float(_find_deviation(batch.x, (0, 1, 2)))
    return InputStatistics(float(batch.x.double().mean()), deviation, dead)


def _count_dead(name: str, examined: ExaminedModel, batch: Batch) -> dict[Key, int]:
    """Dead units of each layer and direction of a module."""
    return {(name, g.layer, g.direction): len(g.dead_units)
            for g in gate_times(examined.layers[name], batch)}  # fmt: skip


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
