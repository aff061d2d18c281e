"""A model under examination: a copy whose recurrent modules record every state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from throughtime import compat
from throughtime.diagnosis.observe import as_layer, observe_modules, read_arguments
from throughtime.diagnosis.observe.batches import (
    call_model,
    check_layers,
    check_loss,
    check_plain,
    check_weights,
    compute_loss,
    find_first_tensor,
    find_own_loss,
    make_copy_error,
    split,
)
from throughtime.diagnosis.observe.calls import Calls
from throughtime.diagnosis.observe.every_state import Path, carry_recorded, list_paths
from throughtime.errors import NotFiniteError, OptionError
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import Batch
from throughtime.layers.drop_in.cells import DropInCell
from throughtime.layers.drop_in.convert import from_torch

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class ModelRun:
    """One run of the model.

    Attributes:
        loss: a scalar on the graph.
        paths: every layer and direction, in the order of the run.
        batches: module's name -> its batch, in the layer's layout; of a module that is called
            more than once all its sequences, as rows of one batch.
        not_whole: module's name -> why its calls are no whole sequences of its layer, where they
            are not; its batch then has a row for each call.
    """

    loss: Tensor
    paths: tuple[Path, ...]
    batches: dict[str, Batch]
    not_whole: dict[str, str]


class ExaminedModel:
    """A copy of a model in eval mode with this package's layers; the model stays as it is.

    Attributes:
        model: the copy.
        modules: its recurrent layers and cells by name.
        layers: the same, with a layer of the same weights in place of each cell.
        others: names of unknown modules that look like recurrent ones.
        sizes: T and B of the first module's batch in the last run, finite or not.

    Raises:
        TypeError: the model is no module.
        OptionError: it is compiled or wrapped, cannot be copied, has no recurrent layer, or one
            that cannot be looked at: frozen, in half precision, or dilated.
    """

    def __init__(self, model: nn.Module) -> None:
        check_plain(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, which the copy alone runs
            self.model = _copy(model).eval()
        self.modules = {
            name: m
            for name, m in self.model.named_modules()
            if isinstance(m, SequenceLayer | DropInCell)
        }
        self.others = tuple(
            name
            for name, m in self.model.named_modules()
            if isinstance(m, nn.RNNBase | nn.RNNCellBase) and name not in self.modules
        )
        self.layers = {name: as_layer(m) for name, m in self.modules.items()}
        self.sizes = (0, 0)
        check_layers(self.layers)

    def run(self, batch: Any, loss: Loss | None = None, *, last_only: bool = False) -> ModelRun:
        """Run the model and its loss once.

        Args:
            batch: as `diagnose` takes it.
            loss: called with output and target, or the output alone where there is no target;
                left out, the number that the model itself gives as its loss, else a fixed random
                projection of the output's last step, and of its first step too when the model
                is bidirectional.
            last_only: let the loss see only the last step of every module: for each direction
                the output of each row's last step; those before count as constants.

        Raises:
            ShapeError: an empty batch.
            NotFiniteError: the first parameter, input, state, output or loss that is not finite.
            OptionError: a loss that is not one number or depends on no state; a module whose
                calls have no order in time; resets; a model or loss that takes another number
                of arguments.
        """
        calls = Calls(last_only)
        pairs = {n: (m, self.layers[n]) for n, m in self.modules.items()}
        try:
            with observe_modules(pairs, lambda n, layer, x: carry_recorded(n, layer, calls, x)):
                value = self._computed(batch, loss, calls)
            calls.finish(value)
            return self._collect_run(value, calls)
        except NotFiniteError:
            check_weights(self.model)  # of what they spoil, they are the first
            raise
        finally:
            self.sizes = next((_find_sizes(calls, name) for name in calls.by_name), (0, 0))

    def _collect_run(self, value: Tensor, calls: Calls) -> ModelRun:
        names = [*calls.by_name]
        reasons = {n: calls.explain_split(n) for n in names}
        return ModelRun(
            loss=value,
            paths=list_paths(calls, self.layers),
            batches={n: calls.batch(n, self.layers[n]) for n in names},
            not_whole={n: reason for n, reason in reasons.items() if reason},
        )

    def free(self) -> None:
        """Let any backend compute the layers from now on; `run` still records states."""
        for module in (*self.layers.values(), *self.modules.values()):
            module.backend = "auto"

    def value(self, batch: Any, loss: Loss | None = None) -> Tensor:
        """The loss on its graph, as `run` takes it, without a record of the states."""
        return self._computed(batch, loss, None)

    def _computed(self, batch: Any, loss: Loss | None, calls: Calls | None) -> Tensor:
        """The loss."""
        inputs = split(self.model, batch, loss)
        ends = _Ends(self.modules)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), ends:
            try:
                output = call_model(self.model, inputs)
            finally:
                if calls is not None and calls.fault is not None:
                    raise calls.fault
            if calls is not None and not calls.by_name:
                raise OptionError("the model ran none of its recurrent layers on this batch")
            value = find_own_loss(output) if loss is None else compute_loss(loss, output, inputs)
            if value is None:
                value = _project(ends.of(output))
        check_loss(value, output)
        return value


class _Ends:
    """Where each row of the model's output ends, by the lengths of its last recurrent module."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.both_ways = any(getattr(m, "directions", 1) == 2 for m in modules.values())
        *_, self.last = modules.values()
        self.lengths: Tensor | None = None
        self.steps = 0

    def __enter__(self) -> None:
        self._hook = self.last.register_forward_hook(self._look, with_kwargs=True)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _look(self, module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        x, _, others = read_arguments(args, kwargs)
        self.steps += 1  # of a cell; of a layer its own layout says which they are
        self.lengths = others.get("lengths")
        if isinstance(x, PackedSequence):
            self.lengths = pad_packed_sequence(x)[1]

    def of(self, output: Any) -> Tensor:
        """The output at each row's last step, and at its first too when the model runs both ways.

        An output of fewer than three dimensions has no steps, and is taken whole.
        """
        y, lengths = find_first_tensor(output), self.lengths
        if isinstance(y, PackedSequence):
            y, lengths = pad_packed_sequence(y)
        elif y.dim() > 2 and self._batch_first(y):
            y = y.transpose(0, 1)
        ends: list[Tensor] = [y]
        if y.dim() < 3:
            return ends[0]
        ends = [y[-1]]
        at = None if lengths is None else torch.as_tensor(lengths, device=y.device)
        if at is not None and len(at) == y.shape[1]:
            at = at.clamp(1, len(y)) - 1
            ends = [y[at, torch.arange(y.shape[1], device=y.device)]]
        if self.both_ways:
            ends.append(y[0])
        return torch.cat(ends, -1)

    def _batch_first(self, y: Tensor) -> bool:
        if isinstance(self.last, SequenceLayer):
            return bool(self.last.batch_first)
        return y.shape[0] != self.steps and y.shape[1] == self.steps


def _project(ends: Tensor) -> Tensor:
    """A fixed random projection."""
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn(ends.shape[-1], dtype=torch.float64, generator=draw, device="cpu")
    return (ends * vector.to(ends)).sum(-1).mean()


def _find_sizes(calls: Calls, name: str) -> tuple[int, int]:
    """T of a module's longest sequence, and the number of its sequences."""
    chains = calls.sequences(name)
    return (
        max(chain[-1].first_step + len(chain[-1].alive) for chain in chains),
        sum(chain[0].alive.shape[1] for chain in chains),
    )


def _copy(model: nn.Module) -> nn.Module:
    """A copy with this package's layers, which are instances of torch's classes."""
    try:
        copied = from_torch(model, backend="reference")
    except OptionError as error:
        if error.__cause__ is None:
            raise
        raise make_copy_error(error.__cause__) from error
    compat.become_torchs(copied)
    return copied
