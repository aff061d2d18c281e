"""What a stream is given at a step, and where its result goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import ShapeError


def one_step(name: str, x: Any, batch: int, device: torch.device, time: int) -> Tensor:
    """A tensor or array (B, I), or of one row (I,), as a sequence of one step."""
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(x).__name__}")
    v = x if isinstance(x, Tensor) else torch.from_numpy(x.copy()).to(device)
    v = v.unsqueeze(0) if v.dim() == 1 and batch == 1 else v
    if v.dim() != 2 or v.shape[0] != batch:
        raise ShapeError(
            f"one step of this stream is ({batch}, I), one row for each of its batch, "
            f"got {tuple(x.shape)} for {name}"
        )
    return v.unsqueeze(time)


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
