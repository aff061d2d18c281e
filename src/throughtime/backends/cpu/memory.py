"""Large memory that is used again: what a forward pass keeps lives until its backward pass.

Fresh pages cost about a tenth of a training step: the system clears each at its first touch, and
the C library gives large blocks back at once. So blocks come back here when their tensor dies.
"""

from __future__ import annotations

import math
import weakref
from threading import Lock
from typing import Final

import numpy as np
import torch
from torch import Tensor

LEAST_BYTES: Final = 1 << 20
"""Smaller blocks the C library keeps by itself."""

MOST_BYTES: Final = 256 << 20
"""Of all blocks that wait to be used again."""

_waiting: list[np.ndarray] = []
_lock = Lock()  # never waited for: a block may die while this very thread looks for one


class _Lent(np.ndarray):
    """A view of a block; a subclass, since the death of a plain array cannot be seen."""


def lend(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory with anything in it, in the numbers of a tensor on the processor."""
    bytes = math.prod(shape) * like.element_size()
    if bytes < LEAST_BYTES:
        return like.new_empty(shape)
    block = _fitting(bytes)
    lent = block[:bytes].view(_Lent)
    weakref.finalize(lent, _give_back, block).atexit = False
    return torch.from_numpy(lent).view(like.dtype).view(shape)


def _fitting(bytes: int) -> np.ndarray:
    """A block that is large enough and not much larger."""
    if _lock.acquire(blocking=False):
        try:
            for i, block in enumerate(_waiting):
                if bytes <= block.nbytes <= 2 * bytes:
                    return _waiting.pop(i)
        finally:
            _lock.release()
    return np.empty(bytes, np.uint8)


def _give_back(block: np.ndarray) -> None:
    if not _lock.acquire(blocking=False):
        return
    try:
        _waiting.append(block)
        while sum(b.nbytes for b in _waiting) > MOST_BYTES:
            _waiting.pop(0)
    finally:
        _lock.release()
