"""A model under examination: a copy whose recurrent layers run step by step, every state kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnose.path import Path, Record, carry
from throughtime.errors import OptionError, ShapeError
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

    Args:
        model: a recurrent layer of torch.nn or of this package, or a module with some in it.

    Raises:
        TypeError: it is no module.
        OptionError: it is compiled or wrapped, has no recurrent layer, or one that cannot be
            looked at: frozen, in half precision, or dilated.
    """

    def __init__(self, model: nn.Module) -> None:
        check_plain(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, which the copy alone runs
            self.model = from_torch(model, backend="reference").eval()
        self.layers = {
            name: m for name, m in self.model.named_modules() if isinstance(m, SequenceLayer)
        }
        _check_layers(self.layers)

    def run(self, batch: Any, loss: Loss | None = None, *, last_only: bool = False) -> Seen:
        """Run the model and its loss once.

        Args:
            batch: the model's input, or a tuple of input and target.
            loss: called with output and target, or the output alone where there is no target;
                left out, a fixed random projection of the output's last step, and of its first
                step too when the model is bidirectional.
            last_only: let the loss see only the last step of every module: for each direction
                the output of its own last step; those before count as constants.

        Raises:
            ShapeError: an empty batch.
            OptionError: a loss that is not one finite number or depends on no state; a layer that
                runs twice; or packed sequences, lengths or resets.
        """
        x, *target = batch if isinstance(batch, tuple) else (batch,)
        record = Record()
        for name, layer in self.layers.items():
            layer.backend = "reference"
            vars(layer)["carry"] = partial(carry, layer, name, record, last_only)
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                output = _first_tensor(self.model(x))
                self._check_run(record)
                value = self._projected(output) if loss is None else loss(output, *target)
        finally:
            for layer in self.layers.values():
                vars(layer).pop("carry")
        _check_loss(value)
        return Seen(value, output, tuple(record.paths), record.batches)

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

    def _check_run(self, record: Record) -> None:
        if not record.paths:
            raise OptionError("the model ran none of its recurrent layers on this batch")


def as_batches(batches: Any) -> list[Any]:
    """One batch or several, as a list of them.

    Args:
        batches: a tensor, a tuple (input, target), or any other iterable of these.

    Raises:
        ShapeError: there is none.
    """
    if isinstance(batches, Tensor | tuple):
        return [batches]
    if not isinstance(batches, Iterable):
        raise OptionError(
            f"batches must be a tensor, a tuple (input, target) or an iterable of these, "
            f"got {type(batches).__name__}"
        )
    found = [tuple(b) if isinstance(b, list) else b for b in batches]
    if not found:
        raise ShapeError("a diagnosis needs at least one batch, got none")
    return found


def check_plain(model: nn.Module) -> None:
    """Refuse what stands in front of a model instead of being one.

    Raises:
        TypeError: no module.
        OptionError: a compiled or wrapped one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise OptionError(f"the model is wrapped in {type(model).__name__}; give model.module")
    if hasattr(model, "_orig_mod"):
        raise OptionError("the model is compiled by torch.compile; give the model it was made from")


def _check_layers(layers: dict[str, SequenceLayer]) -> None:
    if not layers:
        raise OptionError(
            "the model has no recurrent layer of torch.nn or throughtime to look at; cells that "
            "are stepped by a loop of your own cannot be seen"
        )
    if not any(p.requires_grad for layer in layers.values() for p in layer.parameters()):
        raise OptionError("every weight of the recurrent layers is frozen; unfreeze them first")
    for name, layer in layers.items():
        words = f"layer {name}" if name else "the layer"
        dtypes = {p.dtype for p in layer.parameters()}
        if not dtypes <= {torch.float32, torch.float64}:
            raise OptionError(
                f"{words} is in {sorted(map(str, dtypes))}, in which gradients vanish early; "
                f"call model.float() first"
            )
        if max(layer.dilations, default=1) > 1:
            raise OptionError(f"{words} is dilated, so its states at one step are not one state")


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise OptionError(f"the loss must be a tensor with one number, got {value!r}")
    if not bool(value.isfinite()):
        raise OptionError(f"the loss must be finite from the start, got {value.item()}")
    if not value.requires_grad:
        raise OptionError("the loss depends on nothing that trains; do not detach the output")


def _first_tensor(output: Any) -> Tensor:
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise OptionError(
            f"the model must give a tensor, or a tuple that starts with one, "
            f"got {type(output).__name__}"
        )
    return output
