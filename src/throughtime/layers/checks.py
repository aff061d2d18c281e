"""The checks at the border of a layer; inside, everything is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import PACKS, check_batch_sizes
from throughtime.errors import OptionError, ShapeError
from throughtime.torch_private import transform_depth

if TYPE_CHECKING:
    from throughtime.layers.batch import States
    from throughtime.layers.layer import Passage


def check_size(name: str, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(f"{name} must be a positive integer, got {size!r}")


def check_counts(**counts: object) -> None:
    """Whole numbers, none below 0."""
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise OptionError(f"{name} must be an integer from 0 on, got {count!r}")


def check_flags(**flags: object) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise OptionError(f"{name} must be True or False, got {flag!r}")


def check_dtype(dtype: object) -> torch.dtype | None:
    """A floating point dtype, or None for torch's default one."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise OptionError(f"dtype must be a floating point dtype of torch, got {dtype!r}")


def check_x(layer: Passage, x: Any, packed: bool = False) -> None:
    """x is a tensor of the layer's width, dtype and device."""
    if not isinstance(x, Tensor):
        raise tensor_error("x", x)
    if x.is_nested or x.layout != torch.strided:
        kind = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        raise TypeError(
            f"x must be a dense tensor or a PackedSequence, got {kind}; convert it with "
            f"{'.to_padded_tensor(0), and give lengths' if x.is_nested else '.to_dense()'}"
        )
    I, order = layer.input_size, "B, T" if layer.batch_first else "T, B"
    weight = next(layer.parameters(), None)
    if weight is not None and not x.is_floating_point():
        _check_kind("x", x, weight)
    if x.dim() not in ((2,) if packed else (2, 3)):
        raise ShapeError(
            f"the data of a PackedSequence must be (N, {I}), got {tuple(x.shape)}"
            if packed
            else f"x must be ({order}, {I}), or (T, {I}) without a batch, got {tuple(x.shape)}"
        )
    if x.shape[-1] != layer.input_size:
        raise ShapeError(
            f"the last dimension of x must be input_size {I}, got {x.shape[-1]} in {tuple(x.shape)}"
        )
    if weight is not None:
        _check_kind("x", x, weight)


def tensor_error(name: str, value: object, kinds: str = "tensor or a PackedSequence") -> TypeError:
    """The error for an input that is no tensor, with the call that converts it."""
    cure = "give a tensor"
    if isinstance(value, np.ndarray):
        cure = "convert it with torch.from_numpy"
    elif isinstance(value, list):
        cure = "convert it with torch.tensor"
    elif isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        cure = "of a layer's (outputs, state) give the outputs"
    return TypeError(f"{name} must be a {kinds}, got {describe(value)}; {cure}")


def _check_kind(name: str, v: Tensor, weight: Tensor) -> None:
    """A tensor has the device and, unless autocast converts it, the dtype of the weights."""
    if v.device != weight.device:
        raise ShapeError(
            f"{name} must be on {weight.device} as the weights, got {v.device}; move it with "
            f".to({str(weight.device)!r})"
        )
    if v.dtype != weight.dtype and not (
        v.is_floating_point() and torch.is_autocast_enabled(v.device.type)
    ):
        whole = not (v.is_floating_point() or v.is_complex() or v.dtype == torch.bool)
        words = ", or numbers of words with an nn.Embedding" if whole and name == "x" else ""
        raise TypeError(
            f"{name} must be {weight.dtype} as the weights, got {v.dtype}; convert it with "
            f".to({weight.dtype}){words}"
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
    names, weight = layer.cell.state_names, next(layer.parameters(), None)
    form = f"a tuple over {len(layer.widths)} layers of a tuple over ({', '.join(names)})"
    if not isinstance(state, tuple | list) or len(state) != len(layer.widths):
        raise ShapeError(f"state must be {form}, got {describe(state)}{_cure(layer, state)}")
    states = []
    for number, (part, widths) in enumerate(zip(state, layer.widths, strict=True)):
        if not isinstance(part, tuple | list) or len(part) != len(names):
            raise ShapeError(
                f"state must be {form}; layer {number} has {describe(part)}{_cure(layer, state)}"
            )
        for name, v, width in zip(names, part, widths, strict=True):
            shape = (layer.directions, rows, width) if batched else (layer.directions, width)
            if not isinstance(v, Tensor) or tuple(v.shape) != shape:
                raise ShapeError(
                    f"state {name} of layer {number} must be {shape}, got {describe(v)}"
                    f"{advise_transpose(v, shape)}"
                )
            if weight is not None:
                _check_kind(f"state {name} of layer {number}", v, weight)
        states.append(tuple(v if batched else v.unsqueeze(1) for v in part))
    return tuple(states)


def _cure(layer: Passage, state: Any) -> str:
    """How to convert a state that looks like torch.nn's."""
    parts = state if isinstance(state, tuple | list) else (state,)
    if not all(isinstance(v, Tensor) for v in parts):
        return ""
    split = f"h_n.split({layer.directions})"
    if len(layer.cell.state_names) == 1:
        return f"; torch.nn's h_n becomes that with tuple((h,) for h in {split})"
    return (
        f"; torch.nn's (h_n, c_n) becomes that with tuple(zip({split}, {split.replace('h', 'c')}))"
    )


def advise_transpose(v: Any, shape: tuple[int, ...]) -> str:
    """The cure for a state with the batch in front."""
    if len(shape) == 3 and isinstance(v, Tensor) and v.shape == (shape[1], shape[0], shape[2]):
        return "; states are never batch-first, so turn it with .transpose(0, 1)"
    return ""


def check_lengths(lengths: Any, steps: int, rows: int, device: torch.device) -> Tensor:
    """lengths as (B,) int64 from 0 to T."""
    counts = _check_steps("lengths", lengths, rows, device)
    if is_readable(counts) and rows:
        low, high = int(counts.min()), int(counts.max())
        if low < 0 or high > steps:
            wrong = low if low < 0 else high
            raise ShapeError(f"lengths must be from 0 to {steps}, the steps of x, got {wrong}")
    return counts


def check_starts(
    starts: Any, lengths: Tensor | None, steps: int, rows: int, device: torch.device
) -> Tensor:
    """starts as (B,) int64 from 0 to each row's end."""
    begins = _check_steps("starts", starts, rows, device)
    ends = torch.full_like(begins, steps) if lengths is None else lengths
    if is_readable(begins):
        wrong = ((begins < 0) | (begins > ends)).nonzero().flatten().tolist()
        if wrong:
            row = wrong[0]
            raise ShapeError(
                f"starts must be from 0 to each row's end, which is {int(ends[row])} for row "
                f"{row}, got {int(begins[row])}"
            )
    return begins


def _check_steps(name: str, values: Any, rows: int, device: torch.device) -> Tensor:
    """Numbers of steps, one a row, as (B,) int64."""
    try:
        numbers = list(values) if isinstance(values, Iterator) else values
        counts = torch.as_tensor(numbers, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be {rows} integers, got {values!r}") from error
    if counts.numel() == 0:
        counts = counts.to(torch.int64)  # an empty list has no dtype
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {counts.dtype}")
    if counts.shape != (rows,):
        raise ShapeError(f"{name} must be ({rows},), one for each row, got {tuple(counts.shape)}")
    if counts.dtype != torch.int64:  # torch has no minimum of the other unsigned integers
        return counts.to(torch.int64)
    return counts.clone()  # the caller may overwrite them before the backward pass


def count_first_rows(x: PackedSequence) -> int:
    """Rows of the first step; 0 where there is no step, which `check_packed` refuses."""
    sizes = x.batch_sizes
    return int(sizes[0]) if sizes.dim() and len(sizes) else 0


def check_packed(x: PackedSequence) -> Tensor:
    """A copy of batch_sizes, which fit the data."""
    sizes = x.batch_sizes
    if sizes.dtype != torch.int64 or sizes.dim() != 1 or sizes.device.type != "cpu":
        raise TypeError(
            f"batch_sizes of a PackedSequence must be (T,) of torch.int64 on cpu, got "
            f"{tuple(sizes.shape)} of {sizes.dtype} on {sizes.device}"
        )
    if not len(sizes):
        raise ShapeError(f"batch_sizes of a PackedSequence must have a step, got none; {PACKS}")
    if not is_readable(sizes):
        return sizes
    copied = sizes.clone()
    check_batch_sizes(copied.numpy().tobytes(), len(x.data))
    return copied


def check_reset(reset: Any, shape: tuple[int, ...]) -> Tensor:
    """reset as a bool tensor of the layout of x without its width."""
    try:
        flags = reset if isinstance(reset, Tensor) else torch.as_tensor(reset, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"reset must be a bool tensor, got {reset!r}") from error
    if flags.dtype != torch.bool:
        raise TypeError(
            f"reset must be bool, True before the steps where a sequence starts, got {flags.dtype}"
        )
    if flags.shape != shape:
        raise ShapeError(f"reset must be {shape} as x, got {tuple(flags.shape)}")
    return flags.clone()  # as lengths


def check_inputs(layer: Passage, inputs: Mapping[str, Tensor] | None, x: Tensor) -> None:
    """The direct inputs that the cell reads, and no others, each of x's layout and its width."""
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must map names to tensors, got {type(inputs).__name__}")
    needed, names = set(layer.cell.layout.inputs), set(inputs or {})
    if needed != names:
        raise OptionError(
            f"inputs must hold {', '.join(sorted(needed)) or 'nothing'} for this cell, "
            f"got {', '.join(sorted(map(str, names))) or 'nothing'}"
        )
    for name, v in (inputs or {}).items():
        for hidden in layer.hidden_sizes:
            width = layer.cell.width(layer.cell.inputs[name], hidden)
            shape = (*x.shape[:-1], width)
            if not isinstance(v, Tensor) or tuple(v.shape) != shape:
                raise ShapeError(f"input {name} must be {shape} as x, got {describe(v)}")
        _check_kind(f"input {name}", v, x)


def is_readable(v: Tensor) -> bool:
    """Whether values can be read: not inside a compiler or a transform."""
    return not (torch.compiler.is_compiling() or transform_depth() > 0 or v.is_meta)


def describe(value: Any) -> str:
    """A value in words, with its shape if it has one."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value) if isinstance(value, int | float | str) else type(value).__name__
