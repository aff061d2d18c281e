"""Large memory that is used again: what a call works in, and what it keeps for its backward pass.

Fresh pages cost more than a small layer computes and a tenth of a large training step: the system
clears each at its first touch, and the C library gives large blocks back at once. So blocks wait
here for the next call.
"""

from __future__ import annotations

import math
import weakref
from threading import Lock
from typing import Final

import numpy as np
import torch
from torch import Tensor

LEAST_BYTES: Final = 1 << 16
"""Smaller tensors the C library keeps by itself."""

MOST_BYTES: Final = 256 << 20
"""Of all blocks that wait to be used again."""

LINE: Final = 64
"""Bytes of a cache line, where blocks begin."""


class Slab:
    """Memory that may be lent again.

    Attributes:
        memory: the bytes; they live as long as this.
        address, bytes: of them.
    """

    __slots__ = ("address", "bytes", "memory")

    def __init__(self, memory: np.ndarray) -> None:
        self.memory, self.address, self.bytes = memory, int(memory.ctypes.data), memory.nbytes


class _Waiting:
    """Blocks that wait, those that came last first to be taken, and how many bytes they have."""

    def __init__(self) -> None:
        self.blocks: list[Slab] = []
        self.bytes = 0


_waiting = _Waiting()
_lock = Lock()  # never waited for: a block may die while this very thread looks for one


class _Lent(np.ndarray):
    """A view of a block; a subclass, since the death of a plain array cannot be seen."""


def lend(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor with anything in it, in the numbers of another; its memory comes back by itself."""
    bytes = math.prod(shape) * like.element_size()
    if bytes < LEAST_BYTES:
        return like.new_empty(shape)
    block = take(bytes)
    lent = block.memory[:bytes].view(_Lent)
    weakref.finalize(lent, give_back, block).atexit = False
    return torch.from_numpy(lent).view(like.dtype).view(shape)


def take(bytes: int) -> Slab:
    """A block of at least so many bytes, and not many more."""
    if _lock.acquire(blocking=False):
        try:
            blocks = _waiting.blocks
            for i in range(len(blocks) - 1, -1, -1):  # the last that came is likely in a cache
                if bytes <= blocks[i].bytes <= 2 * bytes:
                    block = blocks.pop(i)
                    _waiting.bytes -= block.bytes
                    return block
        finally:
            _lock.release()
    return Slab(fresh(bytes))


def fresh(bytes: int) -> np.ndarray:
    """A block of so many bytes that were never used."""
    block = np.empty(bytes + LINE, np.uint8)
    start = -block.ctypes.data % LINE
    return block[start : start + bytes]


def give_back(block: Slab) -> None:
    """Let a block wait for the next call; those that waited longest go when there are too many."""
    if not _lock.acquire(blocking=False):
        return
    try:
        _waiting.blocks.append(block)
        _waiting.bytes += block.bytes
        while _waiting.bytes > MOST_BYTES:
            _waiting.bytes -= _waiting.blocks.pop(0).bytes
    finally:
        _lock.release()
