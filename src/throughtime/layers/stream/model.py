"""The model that a stream runs: whether it can go step by step, and its frozen copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError
from throughtime.layers.drop_in.cells import DropInCell
from throughtime.layers.layer import Passage


def check_streamable(model: nn.Module) -> None:
    """Every recurrent layer can go step by step, and no other part of the model has a state."""
    _check_carried(model)
    layers = [m for m in model.modules() if isinstance(m, Passage)]
    if not layers:
        raise OptionError("a stream needs a model with a recurrent layer of throughtime in it")
    for layer in layers:
        if layer.directions == 2:
            raise OptionError(
                "a bidirectional layer needs the whole sequence, so it has no stream; "
                "build it with bidirectional=False"
            )
        if set(layer.dilations) != {1}:
            raise OptionError(
                "a dilated layer keeps no old states, so it has no stream; use dilation=1"
            )
    children = [m for parent in model.modules() for m in parent._modules.values()]
    if any(children.count(layer) > 1 for layer in layers):
        raise OptionError(
            "a layer is in the model twice, and a stream cannot tell its two states apart; "
            "use a copy.deepcopy of it, or a second layer"
        )
    if len({layer.batch_first for layer in layers}) > 1:
        raise OptionError("the layers of a stream must agree on batch_first")


def _check_carried(model: nn.Module) -> None:
    """No part of the model has a state that the stream does not carry."""
    for name, part in model.named_modules():
        kind, place = type(part), name or "the model"
        if isinstance(part, nn.RNNCellBase | DropInCell):
            raise OptionError(
                f"{place} is a {kind.__name__}, one step whose state a stream does not carry; "
                f"use a layer in its place: throughtime.RNN, LSTM or GRU"
            )
        if isinstance(part, nn.RNNBase) and not isinstance(part, Passage):
            raise OptionError(
                f"{place} is a torch.nn {kind.__name__}, which would start from zero at every "
                f"step; convert it, as in Stream(throughtime.from_torch(model))"
            )


@torch.no_grad()
def copy_frozen(model: nn.Module, copies: dict[int, Any] | None = None) -> nn.Module:
    """A copy in eval mode, without gradient, its weights as the next call would find them.

    Args:
        model: the model.
        copies: filled with id of an object of the model -> its copy.
    """
    copies = {} if copies is None else copies
    # torch refuses to copy results of a computation, such as weight_norm's last weight.
    results = [v for m in model.modules() for v in vars(m).values() if _is_result(v)]
    copies.update({id(v): v.detach().clone() for v in results})
    try:
        copied = copy.deepcopy(model, copies)
    except RuntimeError as error:
        raise OptionError(
            f"a stream runs a copy of the model, and torch cannot copy this one ({error}); let the "
            f"model hold no tensors that were computed from its weights"
        ) from error
    copied.eval().requires_grad_(False)
    for layer in copied.modules():
        if isinstance(layer, Passage):  # a stream does not run the layer's hooks, so run them now
            for hook in layer._forward_pre_hooks.values():
                if type(hook).__module__.startswith("torch.nn.utils"):
                    hook(layer, ())
    return copied


@torch.no_grad()
def round_matrices(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Round the matrices of a frozen model's layers and linear parts to bfloat16, unless None.

    Raises:
        OptionError: another dtype, or weights that are not float32 or are computed from others.
    """
    if dtype is None:
        return
    if dtype != torch.bfloat16:
        raise OptionError(f"weights must be torch.bfloat16 or None, got {dtype!r}")
    for name, part in model.named_modules():
        if not isinstance(part, Passage | nn.Linear):
            continue
        if part._forward_pre_hooks or "parametrizations" in part._modules:
            raise OptionError(
                f"weights={dtype} rounds weights once, and {name or 'the model'} computes its own "
                f"anew at each call; remove its parametrizations or hooks first"
            )
        for kind, v in part.named_parameters(recurse=False):
            if v.dtype != torch.float32:
                raise OptionError(f"weights={dtype} needs a float32 model, got {v.dtype} in {kind}")
            if v.dim() == 2:
                v.copy_(v.to(dtype))


def _is_result(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf
