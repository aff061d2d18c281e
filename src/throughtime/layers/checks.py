"""The checks at the border of a layer; inside, everything is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import States
from throughtime.layers.passage import Passage


def check_x(layer: Passage, x: Any, packed: bool = False) -> None:
    """x is a tensor of the layer's width, dtype and device."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor or a PackedSequence, got {type(x).__name__}")
    if not packed and x.dim() not in (2, 3):
        raise ShapeError(
            f"x must be (T, B, {layer.input_size}), or (T, {layer.input_size}) without a batch, "
            f"got {tuple(x.shape)}"
        )
    if x.shape[-1] != layer.input_size:
        raise ShapeError(
            f"the last dimension of x must be input_size {layer.input_size}, got {x.shape[-1]} "
            f"in {tuple(x.shape)}"
        )
    weight = next(layer.parameters(), None)
    if weight is None:
        return
    if x.device != weight.device:
        raise ShapeError(
            f"x must be on {weight.device} as the weights, got {x.device}; move it with "
            f"x.to({str(weight.device)!r})"
        )
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x must be {weight.dtype} as the weights, got {x.dtype}; convert it with "
            f"x.to({weight.dtype})"
        )


def check_state(layer: Passage, state: Any, rows: int, batched: bool) -> States | None:
    """The state as a tuple over layers of a tuple over states, each (D, B, width)."""
    if state is None:
        return None
    if set(layer.dilations) != {1}:
        raise OptionError(
            "a dilated layer holds no old states, so it takes whole sequences only; "
            "leave state out, or use dilation=1"
        )
    names = layer.cell.state_names
    form = f"a tuple over {len(layer.widths)} layers of a tuple over ({', '.join(names)})"
    if not isinstance(state, tuple | list) or len(state) != len(layer.widths):
        raise ShapeError(f"state must be {form}, got {_described(state)}")
    found = []
    for number, (part, widths) in enumerate(zip(state, layer.widths, strict=True)):
        if not isinstance(part, tuple | list) or len(part) != len(names):
            raise ShapeError(f"state must be {form}; layer {number} has {_described(part)}")
        for name, v, width in zip(names, part, widths, strict=True):
            shape = (layer.directions, rows, width) if batched else (layer.directions, width)
            if not isinstance(v, Tensor) or tuple(v.shape) != shape:
                raise ShapeError(
                    f"state {name} of layer {number} must be {shape}, got {_described(v)}"
                )
        found.append(tuple(v if batched else v.unsqueeze(1) for v in part))
    return tuple(found)


def check_lengths(lengths: Any, steps: int, rows: int, device: torch.device) -> Tensor:
    """lengths as (B,) int64 from 0 to T."""
    found: Tensor = torch.as_tensor(lengths, device=device)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {found.dtype}")
    if found.shape != (rows,):
        raise ShapeError(f"lengths must be ({rows},), one for each row, got {tuple(found.shape)}")
    if not _hidden_values() and rows:
        low, high = int(found.min()), int(found.max())
        if low < 0 or high > steps:
            wrong = low if low < 0 else high
            raise ShapeError(f"lengths must be from 0 to {steps}, the steps of x, got {wrong}")
    return found.to(torch.int64)


def check_reset(reset: Any, shape: tuple[int, ...]) -> Tensor:
    """reset as a bool tensor of the layout of x without its width."""
    found: Tensor = torch.as_tensor(reset)
    if found.dtype != torch.bool:
        raise TypeError(
            f"reset must be bool, True before the steps where a sequence starts, got {found.dtype}"
        )
    if found.shape != shape:
        raise ShapeError(f"reset must be {shape} as x, got {tuple(found.shape)}")
    return found


def check_inputs(layer: Passage, inputs: Mapping[str, Tensor] | None) -> None:
    """The direct inputs that the cell reads, and no others."""
    needed, given = set(layer.cell.layout.inputs), set(inputs or {})
    if needed != given:
        raise OptionError(
            f"inputs must hold {', '.join(sorted(needed)) or 'nothing'} for this cell, "
            f"got {', '.join(sorted(given)) or 'nothing'}"
        )


def _hidden_values() -> bool:
    """Whether values of tensors cannot be looked at: a compiler or a transform is at work."""
    return torch.compiler.is_compiling() or torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return (
        f"{type(value).__name__} of {len(value)}"
        if isinstance(value, tuple | list)
        else repr(value)
    )
