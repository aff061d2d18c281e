"""What a stream is given at a step, and where its result goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.cpu.stream_memory import Array
from throughtime.errors import ShapeError


def one_step(name: str, x: Any, batch: int, device: torch.device, time: int) -> Tensor:
    """A tensor or array (B, I), or of one row (I,), as a sequence of one step; or tokens (B,)."""
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(x).__name__}")
    v = x if isinstance(x, Tensor) else torch.from_numpy(x.copy()).to(device)
    if are_tokens(v, batch):
        v = v if isinstance(x, Tensor) else v.long()  # NumPy has more kinds than embeddings take
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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v)


def each_tensor(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same tuples, lists and mappings with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each_tensor(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(each_tensor(v, change) for v in value)
    if isinstance(value, Mapping):
        found = {k: each_tensor(v, change) for k, v in value.items()}
        return found if type(value) is dict else type(value)(found)  # type: ignore[call-arg]
    return value


def dtypes_of_arrays(x: Any, inputs: Any) -> frozenset[torch.dtype]:
    """The dtypes of what is given as NumPy arrays."""
    given = [x, *(inputs.values() if isinstance(inputs, Mapping) else ())]
    kinds = {v.dtype for v in given if isinstance(v, np.ndarray)}
    return frozenset(torch.from_numpy(np.empty(0, kind)).dtype for kind in kinds)


def written(out: Any, y: Any) -> Any:
    """`out` with the result in it; it must be of the result's kind, shape and dtype."""
    if type(out) is not type(y) or out.shape != y.shape or out.dtype != y.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if hasattr(out, "dtype") else ""
        raise ShapeError(
            f"out must be a {type(y).__name__} {tuple(y.shape)} {y.dtype} as the result is, "
            f"got a {type(out).__name__} {got}".rstrip()
        )
    out[...] = y
    return out
