"""A model under examination: a copy whose recurrent layers run step by step, every state kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.batches import called, judged, parts
from throughtime.diagnosis.checks import (
    check_layers,
    check_loss,
    check_plain,
    check_weights,
    first_tensor,
    not_copied,
)
from throughtime.diagnosis.path import Path, Record, carry
from throughtime.errors import NotFiniteError, OptionError
from throughtime.layers.batch import Batch
from throughtime.layers.convert import from_torch
from throughtime.layers.sequence import SequenceLayer

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Seen:
    """One run of the model.

    Attributes:
        loss: a scalar on the graph.
        output: what the model gives, the first tensor of it.
        paths: every layer and direction, in the order of the run.
        batches: module's name -> what it was given, in the layer's own layout.
    """

    loss: Tensor
    output: Tensor
    paths: tuple[Path, ...]
    batches: dict[str, Batch]


class Subject:
    """A copy of a model in eval mode, whose layers are ours; the model itself stays as it is.

    Attributes:
        model: the copy.
        layers: its recurrent layers by name.
        sizes: T and B of what the first of them was given in the last run, finite or not.

    Args:
        model: a recurrent layer of torch.nn or of this package, or a module with some in it.

    Raises:
        TypeError: it is no module.
        OptionError: it is compiled or wrapped, cannot be copied, has no recurrent layer, or one
            that cannot be looked at: frozen, in half precision, or dilated.
    """

    def __init__(self, model: nn.Module) -> None:
        check_plain(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, which the copy alone runs
            self.model = _copied(model).eval()
        self.layers = {
            name: m for name, m in self.model.named_modules() if isinstance(m, SequenceLayer)
        }
        self.sizes = (0, 0)
        check_layers(self.layers)

    def run(self, batch: Any, loss: Loss | None = None, *, last_only: bool = False) -> Seen:
        """Run the model and its loss once.

        Args:
            batch: the model's input, or a tuple of input and target; an input that is a tuple of
                tensors is given to the model as several arguments.
            loss: called with output and target, or the output alone where there is no target;
                left out, a fixed random projection of the output's last step, and of its first
                step too when the model is bidirectional.
            last_only: let the loss see only the last step of every module: for each direction
                the output of its own last step; those before count as constants.

        Raises:
            ShapeError: an empty batch.
            NotFiniteError: the first parameter, input, state, output or loss that is not finite.
            OptionError: a loss that is not one number or depends on no state; a layer that
                runs twice; packed sequences, lengths or resets; a model or loss that takes
                another number of arguments.
        """
        record = Record()
        for name, layer in self.layers.items():
            vars(layer)["carry"] = partial(carry, layer, name, record, last_only)
        try:
            output, value = self._computed(batch, loss, record)
        except NotFiniteError:
            check_weights(self.model)  # of what they spoil, they are the first
            raise
        finally:
            T, B = next((b.x.shape[:2] for b in record.batches.values()), (0, 0))
            self.sizes = (T, B)
            for layer in self.layers.values():
                vars(layer).pop("carry")
        return Seen(value, output, tuple(record.paths), record.batches)

    def free(self) -> None:
        """Let any backend compute the layers from now on; `run` records states all the same."""
        for layer in self.layers.values():
            layer.backend = "auto"

    def value(self, batch: Any, loss: Loss | None = None) -> Tensor:
        """The loss on its graph, as `run` takes it, without a record of the states."""
        return self._computed(batch, loss, None)[1]

    def _computed(
        self, batch: Any, loss: Loss | None, record: Record | None
    ) -> tuple[Tensor, Tensor]:
        """Output and loss."""
        inputs, target = parts(batch)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            output = first_tensor(called(self.model, inputs))
            if record is not None and not record.paths:
                raise OptionError("the model ran none of its recurrent layers on this batch")
            value = self._projected(output) if loss is None else judged(loss, output, target)
        check_loss(value, output)
        return output, value

    def last_steps(self, output: Tensor) -> Tensor:
        """The output at its last step, and at its first too when the model is bidirectional."""
        if output.dim() < 3:
            return output
        *_, layer = self.layers.values()
        steps = output.transpose(0, 1) if layer.batch_first else output
        ends = [steps[-1]]
        if any(m.directions == 2 for m in self.layers.values()):
            ends.append(steps[0])
        return torch.cat(ends, -1)

    def _projected(self, output: Tensor) -> Tensor:
        ends = self.last_steps(output)
        draw = torch.Generator().manual_seed(0)
        vector = torch.randn(ends.shape[-1], dtype=torch.float64, generator=draw).to(ends)
        return (ends * vector).sum(-1).mean()


def _copied(model: nn.Module) -> nn.Module:
    try:
        return from_torch(model, backend="reference")
    except OptionError as error:
        if error.__cause__ is None:
            raise
        raise not_copied(error.__cause__) from error
