"""The border of a stream: x, rows and states as the user gives them, and what is given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.cpu.stream.memory import Array
from throughtime.errors import ShapeError
from throughtime.layers.batch import States
from throughtime.layers.checks import check_state
from throughtime.layers.layer import Passage


def make_sequence(name: str, x: Any, batch: int, device: torch.device, time: int) -> Tensor:
    """A tensor or array (B, I), or of one row (I,), as a sequence of one step; or tokens (B,)."""
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(x).__name__}")
    v = x if isinstance(x, Tensor) else torch.from_numpy(x.copy()).to(device)
    if are_tokens(v, batch):
        v = v if isinstance(x, Tensor) else v.long()  # embeddings take few of NumPy's dtypes
        return v.reshape(batch).unsqueeze(time)
    v = v.unsqueeze(0) if v.dim() == 1 and batch == 1 else v
    if v.dim() != 2 or v.shape[0] != batch:
        raise ShapeError(
            f"one step of this stream is ({batch}, I), one row for each of its batch, "
            f"got {tuple(x.shape)} for {name}"
        )
    return v.unsqueeze(time)


def are_tokens(x: Tensor | Array, batch: int) -> bool:
    """Whether x holds one whole number for each row, which a model looks up."""
    if isinstance(x, Tensor):
        whole = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    else:
        whole = x.dtype.kind in "iu"
    return whole and (x.shape == (batch,) or (batch == 1 and x.ndim == 0))


def is_flat(x: Any, batch: int) -> bool:
    """Whether x is one row alone, without the dimension of rows."""
    if batch != 1 or not isinstance(x, Tensor | np.ndarray):
        return False
    return x.ndim == 0 or (x.ndim == 1 and not are_tokens(x, 1))


def list_tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from list_tensors(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from list_tensors(v)


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same tuples, lists and mappings with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, change) for v in value)
    if isinstance(value, Mapping):
        changed = {k: map_tensors(v, change) for k, v in value.items()}
        return changed if type(value) is dict else type(value)(changed)  # type: ignore[call-arg]
    return value


def find_array_dtypes(x: Any, inputs: Any) -> frozenset[torch.dtype]:
    """The dtypes of the inputs that are NumPy arrays."""
    values = [x, *(inputs.values() if isinstance(inputs, Mapping) else ())]
    kinds = {v.dtype for v in values if isinstance(v, np.ndarray)}
    return frozenset(torch.from_numpy(np.empty(0, kind)).dtype for kind in kinds)


def write_out(out: Any, y: Any) -> Any:
    """`out` with the result in it; it must be of the result's kind, shape and dtype."""
    if type(out) is not type(y) or out.shape != y.shape or out.dtype != y.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if hasattr(out, "dtype") else ""
        raise ShapeError(
            f"out must be a {type(y).__name__} {tuple(y.shape)} {y.dtype} as the result is, "
            f"got a {type(out).__name__} {got}".rstrip()
        )
    out[...] = y
    return out


def number_rows(rows: Any, batch: int) -> Array:
    """Rows by number or as a bool mask, each at most once, as numbers in their order."""
    chosen = np.asarray(rows)
    if chosen.dtype.kind in "iu" and chosen.ndim == 1:
        numbers = chosen.astype(np.int64, copy=False)
        taken = np.zeros(batch, bool)
        if not len(numbers) or (numbers.min() >= 0 and numbers.max() < batch):
            taken[numbers] = True
            if np.count_nonzero(taken) == len(numbers):
                return numbers
            firsts = np.unique(numbers, return_index=True)[1]
            wrong = np.delete(numbers, firsts)[0]
            raise ShapeError(f"rows must differ, got {wrong} twice")
    return mask_rows(rows, batch).nonzero().reshape(-1).numpy()


def mask_rows(rows: Any, batch: int) -> Tensor:
    """Rows by number or as a bool mask, as a bool mask (B,)."""
    numbers = torch.as_tensor(rows, device="cpu")
    if numbers.dtype == torch.bool:
        if numbers.shape != (batch,):
            raise ShapeError(f"rows as a bool mask must be ({batch},), got {tuple(numbers.shape)}")
        return numbers
    numbers = numbers.to(torch.int64) if numbers.numel() == 0 else numbers
    if numbers.is_floating_point() or numbers.is_complex():
        raise TypeError(f"rows must be numbers of rows or a bool mask, got {numbers.dtype}")
    wrong = numbers[(numbers < 0) | (numbers >= batch)]
    if wrong.numel():
        raise ShapeError(f"rows must be from 0 to {batch - 1}, got {int(wrong[0])}")
    mask = torch.zeros(batch, dtype=torch.bool, device="cpu")
    return mask.index_fill_(0, numbers.reshape(-1).long(), True)


def check_row(row: Any, batch: int) -> int:
    if isinstance(row, bool) or not isinstance(row, int | np.integer):
        raise TypeError(f"row must be the number of a row, got {row!r}")
    if not 0 <= row < batch:
        raise ShapeError(f"row must be from 0 to {batch - 1}, got {row}")
    return int(row)


def select_rows(state: States, rows: Any) -> States:
    """The state of some rows, or of all (None)."""
    if rows is None:
        return state
    return tuple(tuple(v[:, rows] for v in s) for s in state)


def replace_rows(state: States, rows: Any, new: States) -> States:
    if rows is None:
        return new
    states = tuple(tuple(v.clone() for v in s) for s in state)
    for s, part in zip(states, new, strict=True):
        for v, w in zip(s, part, strict=True):
            v[:, rows] = w
    return states


def check_states(layers: list[Passage], state: Any, rows: int) -> list[States]:
    """Copies of states that the layers can continue from.

    Raises:
        ShapeError, TypeError: the state of a layer does not fit.
    """
    if not isinstance(state, tuple | list) or len(state) != len(layers):
        got = len(state) if isinstance(state, tuple | list) else type(state).__name__
        raise ShapeError(
            f"state must hold one entry for each of {len(layers)} recurrent layers, got {got}"
        )
    copies = []
    for layer, value in zip(layers, state, strict=True):
        states = check_state(layer, value, rows, True)
        if states is None:
            raise ShapeError("the state of a layer of this stream must be its tensors, got None")
        copies.append(tuple(tuple(v.detach().clone() for v in s) for s in states))
    return copies
