"""torch.nn's own checks, word for word, for programs that read its errors; and dtypes of states,
which torch.nn does not check."""

from __future__ import annotations

import numbers
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError
from throughtime.layers.checks import advise_transpose, describe, tensor_error
from throughtime.torch_private import any_autocast

if TYPE_CHECKING:
    from throughtime.layers.drop_in.base import DropIn
    from throughtime.layers.drop_in.cells import DropInCell


def check_arguments(
    input_size: Any, hidden_size: Any, num_layers: Any, bias: Any, batch_first: Any, dropout: Any
) -> None:
    """The constructor's arguments as torch.nn checks them, in its order."""
    float(dropout)
    number = isinstance(dropout, numbers.Number) and not isinstance(dropout, bool)
    if not number or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            "element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and "
            f"num_layers={num_layers}",
            stacklevel=3,
        )
    _check_kind("bias", bias, bool)
    _check_kind("batch_first", batch_first, bool)
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
        _check_kind(name, size, int)
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")


def check_projection(hidden_size: int, proj_size: int) -> None:
    """The width of an LSTM's projection, as torch.nn checks it."""
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")


def check_pair(hidden_size: Any, proj_size: int) -> tuple[int, int]:
    """hidden_size as (long, short), which torch.nn does not have."""
    if len(hidden_size) != 2:
        raise OptionError(
            f"hidden_size must be a number or a pair (long, short), got {hidden_size!r}"
        )
    for size in hidden_size:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(
                f"hidden_size as a pair (long, short) must hold positive integers, "
                f"got {hidden_size!r}"
            )
    if proj_size:
        raise OptionError(
            f"hidden_size as a pair (long, short) already names the width of h, so proj_size must "
            f"be left out, got {proj_size}"
        )
    long, short = hidden_size
    return long, short


def check_nothing_projected(proj_size: Any) -> None:
    """`proj_size` is refused where torch.nn refuses it."""
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def _check_kind(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")


def check_dimensions(layer: DropIn, x: Tensor, state: Any) -> None:
    """A padded input has two or three dimensions, and each state as many."""
    try:
        _check_dimensions(layer, x, state)
    except (AttributeError, IndexError):  # torch.nn's text names a missing attribute only
        if not isinstance(x, Tensor):
            raise tensor_error("input", x) from None
        raise _state_error(layer, state) from None


def _check_dimensions(layer: DropIn, x: Tensor, state: Any) -> None:
    name = layer.kind
    if x.dim() not in (2, 3):
        tensor = " tensor" if name == "RNN" else ""
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D{tensor} instead")
    if state is None:
        return
    batched, need = ("batched", 3) if x.dim() == 3 else ("unbatched", 2)
    if name != "LSTM":
        if state[0].dim() != need:
            raise RuntimeError(
                f"For {batched} {need}-D input, hx should also be {need}-D but got "
                f"{state[0].dim()}-D tensor"
            )
    elif state[0].dim() != need or state[1].dim() != need:
        raise RuntimeError(
            f"For {batched} {need}-D input, hx and cx should also be {need}-D but got "
            f"({state[0].dim()}-D, {state[1].dim()}-D) tensors"
        )


def _state_error(layer: DropIn | DropInCell, state: Any) -> TypeError:
    """The error for states that are no tensors, or too few of them."""
    two = layer.kind.startswith("LSTM")
    hx = state if two else state[0]
    cure = ""
    parts = hx if isinstance(hx, tuple | list) else ()
    if parts and all(isinstance(part, tuple | list) for part in parts):
        join = (
            "tuple(torch.cat(v) for v in zip(*state))" if two else "torch.cat([h for h, in state])"
        )
        cure = f"; of the state of a Recurrent give {join}"
    elif not two and len(parts) == 2:
        cure = "; an LSTM takes two"
    names = "two tensors (h_0, c_0)" if two else "one tensor h_0"
    kinds = f" of {describe(parts[0])}" if len(parts) and not isinstance(parts[0], Tensor) else ""
    return TypeError(f"hx of {layer.kind} must be {names}, got {describe(hx)}{kinds}{cure}")


def check_input(layer: DropIn, x: Tensor, dtype: torch.dtype, dimensions: int) -> None:
    """dtype and width of the input; torch raises the error, whose text differs by its version."""
    fits = x.dtype == dtype or any_autocast()
    if not fits or x.dim() != dimensions or x.size(-1) != layer.input_size:
        nn.RNNBase.check_input(layer, x, x if dimensions == 2 else None)


def check_state(layer: DropIn, state: tuple[Tensor, ...], rows: int, dtype: torch.dtype) -> None:
    """Each state is (layers x directions, rows, width), in the dtype of the weights."""
    if len(state) != len(layer.widths[0]):
        raise RuntimeError("lstm expects two hidden states")
    for i, (v, width) in enumerate(zip(state, layer.widths[0], strict=True)):
        expected = (layer.num_layers * layer.directions, rows, width)
        if not isinstance(v, Tensor):
            raise _state_error(layer, state)
        if v.shape != expected:
            name = f"hidden[{i}]" if len(state) == 2 else "hidden"
            raise RuntimeError(
                f"Expected {name} size {expected}, got {list(v.size())}"
                f"{advise_transpose(v, expected)}"
            )
        _check_dtype("hx" if len(state) == 1 else f"hx[{i}]", v, dtype)


def _check_dtype(name: str, v: Tensor, dtype: torch.dtype) -> None:
    """torch.nn leaves this to its kernels, some of which speak of others' types."""
    if v.dtype != dtype and not any_autocast():
        raise RuntimeError(f"{name} must be {dtype} as the weights, got {v.dtype}; convert it with "
                           f".to({dtype})")  # fmt: skip


def check_cell_dimensions(cell: DropInCell, x: Tensor, hx: Any) -> None:
    """The input of one step has one or two dimensions, and so has each state."""
    try:
        if x.dim() not in (1, 2):
            raise ValueError(f"{cell.kind}: Expected input to be 1D or 2D, got {x.dim()}D instead")
        for i, v in enumerate(() if hx is None else hx):
            if v.dim() not in (1, 2):
                name = f"hx[{i}]" if cell.kind == "LSTMCell" else "hidden"
                raise ValueError(
                    f"{cell.kind}: Expected {name} to be 1D or 2D, got {v.dim()}D instead"
                )
    except AttributeError:  # torch.nn's text names a missing attribute only
        if not isinstance(x, Tensor):
            raise tensor_error("input", x, "tensor") from None
        raise _state_error(cell, hx) from None
    dtype = cell.weight_ih.dtype
    _check_dtype("input", x, dtype)
    for i, v in enumerate(() if hx is None else hx):
        _check_dtype(f"hx[{i}]" if cell.kind == "LSTMCell" else "hx", v, dtype)


def check_cell_sizes(cell: DropInCell, x: Tensor, state: tuple[Tensor, ...]) -> None:
    """The checks of torch's own step, for the backends that have none.

    That step itself raises the error, since its text differs by torch's version.
    """
    sizes = (x.shape[0], cell.hidden_size)
    states = len(state) == len(cell.cell.state_names) and all(v.shape == sizes for v in state)
    if x.shape[1] != cell.input_size or not states:
        cell.step_by_torch(x, state)
