"""Which rows each step of a call has, and how they are cut into chunks for threads."""

from __future__ import annotations

import functools
from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from throughtime.backends.call import Call, check_batch_sizes
from throughtime.backends.cpu.look import checked
from throughtime.errors import ShapeError

UNEVEN = 4
"""How many times the rows of an even chunk one may have, where rows are of many lengths."""


class Extent(NamedTuple):
    """What of the rows the words of a call follow from; of a ragged one, each call gives the rest.

    Attributes:
        T: steps.
        B: rows.
        ragged: whether steps may differ in their rows.
    """

    T: int
    B: int
    ragged: bool

    def even_chunk(self, chunks: int) -> int:
        """Rows of a chunk where all have as many."""
        return -(-self.B // chunks)

    def widest_chunk(self, chunks: int) -> int:
        """Rows that a chunk may have."""
        return min(self.B, self.even_chunk(chunks) * (UNEVEN if self.ragged else 1))


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows each step has, with addresses of the arrays that compiled code reads.

    Attributes:
        T: steps.
        B: rows.
        N: rows over all steps.
        ragged: whether steps may differ in their rows.
        alive: (T,) rows of each step, in falling order.
        offset: (T,) rows before each step.
        order: (B,) the line of each row in the tensors.
    """

    T: int
    B: int
    N: int
    ragged: bool
    alive: np.ndarray
    offset: np.ndarray
    order: np.ndarray
    _bounds: dict[int, array[int]] = field(default_factory=dict)

    @cached_property
    def extent(self) -> Extent:
        """What the words of a call follow from."""
        return Extent(self.T, self.B, self.ragged)

    @cached_property
    def addresses(self) -> tuple[int, int, int]:
        """Of alive, offset and order."""
        return tuple(v.ctypes.data for v in (self.alive, self.offset, self.order))  # type: ignore[return-value]

    @cached_property
    def there(self) -> np.ndarray:
        """(T, B) bool: which rows each step has, in their own order."""
        return np.arange(self.B) < self.alive[:, None]

    @cached_property
    def lines(self) -> np.ndarray:
        """(N,) where each row of each step lies among the T B of a padded tensor."""
        steps, rows = self.there.nonzero()
        lines: np.ndarray = steps * self.B + self.order[rows]
        return lines

    @cached_property
    def places(self) -> np.ndarray:
        """(T B,) the other way round: which of the N rows lies there, N where none does."""
        numbers = np.full(self.T * self.B, self.N)
        numbers[self.lines] = np.arange(self.N)
        return numbers

    def bounds(self, chunks: int) -> array[int]:
        """Where each chunk of rows begins, all with as many steps; and where the last ends."""
        if chunks not in self._bounds:
            self._bounds[chunks] = self._cut(chunks)
        return self._bounds[chunks]

    def _cut(self, chunks: int) -> array[int]:
        B = self.B
        if self.N == self.T * B or chunks == 1:
            return array("q", [i * B // chunks for i in range(chunks + 1)])
        done = np.cumsum(self.there.sum(0))
        inner = np.searchsorted(done, [self.N * i // chunks for i in range(1, chunks)]) + 1
        cut = array("q", [0, *(min(int(v), B) for v in inner), B])
        widest = self.extent.widest_chunk(chunks)
        for i in range(chunks - 1, 0, -1):
            cut[i] = max(cut[i], cut[i + 1] - widest)
        return cut


@functools.lru_cache(maxsize=256)
def full_rows(T: int, B: int) -> Rows:
    """Every step has every row."""
    steps = np.arange(T, dtype=np.int64)
    order = np.arange(B, dtype=np.int64)
    return Rows(T, B, T * B, False, np.full(T, B, np.int64), steps * B, order)


def rows_of(call: Call) -> Rows:
    """The rows of a call: padded, padded with lengths, or packed."""
    if call.batch_sizes is not None:
        return _packed_rows(
            checked("batch_sizes", call.batch_sizes, None, call.batch_sizes.dtype)
            .numpy()
            .astype(np.int64, copy=False)
            .tobytes(),
            len(call.x),
        )
    if call.lengths is not None:
        lengths = (
            checked("lengths", call.lengths, None, call.lengths.dtype).numpy().astype(np.int64)
        )
        return _ragged_rows(lengths.tobytes(), *call.x.shape[:2])
    return full_rows(call.x.shape[0], call.x.shape[1])


# A forward and a backward pass ask for the same rows, and a batch may come again.
@functools.lru_cache(maxsize=16)
def _packed_rows(batch_sizes: bytes, N: int) -> Rows:
    alive = check_batch_sizes(batch_sizes, N)
    return _rows(alive, np.arange(alive[0] if len(alive) else 0, dtype=np.int64))


@functools.lru_cache(maxsize=16)
def _ragged_rows(lengths: bytes, T: int, B: int) -> Rows:
    steps = np.frombuffer(lengths, np.int64)
    if len(steps) != B:
        raise ShapeError(f"lengths must be ({B},), one for each row, got ({len(steps)},)")
    alive = B - np.searchsorted(np.sort(steps), np.arange(T), "right")
    return _rows(alive.astype(np.int64), np.argsort(-steps, kind="stable").astype(np.int64))


def _rows(alive: np.ndarray, order: np.ndarray) -> Rows:
    offset = np.cumsum(alive) - alive
    return Rows(len(alive), len(order), int(alive.sum()), True, alive, offset, order)


ROW_WORDS = ("alive", "offset", "order")
"""In the order of `Rows.addresses`."""
