"""What a diagnosis cannot look at, said before it starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.diagnosis.observe.batches import first_tensor
from throughtime.errors import NotFiniteError, OptionError
from throughtime.layers.sequence import SequenceLayer


def check_plain(model: nn.Module) -> None:
    """Refuse what stands in front of a model instead of being one.

    Raises:
        TypeError: no module.
        OptionError: a compiled or wrapped one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    for name, module in model.named_modules():
        words = f"module {name}" if name else "the model"
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            kind = type(module).__name__
            raise OptionError(f"{words} is wrapped in {kind}; give the one in its .module")
        if hasattr(module, "_orig_mod"):
            raise OptionError(f"{words} is compiled by torch.compile; give what it was made from")


def not_copied(error: BaseException) -> OptionError:
    """A model that torch cannot copy, and the usual reason."""
    return OptionError(
        f"torch cannot copy this model ({str(error).split('.')[0]}); where it keeps a tensor of an "
        f"earlier call as an attribute, delete or detach that"
    )


def check_layers(layers: dict[str, SequenceLayer]) -> None:
    """Refuse recurrent layers whose gradients through time cannot be seen.

    Raises:
        OptionError: there is none, all are frozen, one is in half precision or dilated.
    """
    if not layers:
        raise OptionError(
            "the model has no recurrent layer of torch.nn or throughtime to look at, and no cell; "
            "equations written out in a loop of your own and subclasses of torch's layers cannot "
            "be seen, so make them a Cell for throughtime.Recurrent"
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


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are no numbers.

    Raises:
        NotFiniteError: the first such parameter.
    """
    for name, p in model.named_parameters():
        if not bool(p.isfinite().all()):
            text = f"parameter {name} has NaN or infinity in it before any step"
            raise NotFiniteError(text, "parameter", name)


def check_loss(value: Any, output: Any) -> None:
    """Refuse a loss without a gradient.

    Args:
        value: the loss.
        output: what the model gave.

    Raises:
        NotFiniteError: the output or the loss is NaN or infinite.
        OptionError: it is no single number, or depends on nothing that trains.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise OptionError(f"the loss must be a tensor with one number, got {value!r}")
    if not bool(value.isfinite()):
        if output is not value and not bool(_numbers(output).isfinite().all()):
            text = "the model's output is NaN or infinity, while all states before it are finite"
            raise NotFiniteError(text, "output")
        text = f"the loss must be finite from the start, got {value.item()} of a finite output"
        raise NotFiniteError(text, "loss")
    if not value.requires_grad:
        raise OptionError("the loss depends on nothing that trains; do not detach the output")


def _numbers(output: Any) -> Tensor:
    y = first_tensor(output)
    numbers: Tensor = y.data if isinstance(y, PackedSequence) else y
    return numbers
