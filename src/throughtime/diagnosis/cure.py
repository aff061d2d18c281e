"""The cure: an untrained copy of a model whose recurrent layers start so that they reach back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from throughtime.diagnosis.observe.batches import check_plain, copy_error
from throughtime.errors import OptionError
from throughtime.layers.drop_in.convert import from_torch
from throughtime.layers.initialise import Startable, initialise

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


class HasLag(Protocol):
    """The part of a report that a cure reads: how many steps back the task needs."""

    @property
    def lag(self) -> int: ...


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
    model: nn.Module, report: HasLag | None = None, lag: int | None = None,
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
        raise copy_error(error) from error
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
