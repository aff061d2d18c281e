"""What a compiled stream works in: its arrays, the packed weights, and the list of its calls."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from throughtime.backends.cpu.memory import fresh
from throughtime.backends.cpu.schedule import whole_vectors
from throughtime.compiler.llvm.abi import (
    ADD,
    HEAD,
    OPERATION,
    OPERATIONS,
    TILE,
    Kind,
    highest,
    widest,
)
from throughtime.compiler.llvm.library import stream_tile
from throughtime.compiler.runtime.machine import Machine

Array = np.ndarray[Any, Any]


class AlignedRows(NamedTuple):
    """Rows of numbers in memory that begin at a cache line.

    Attributes:
        array: (rows, numbers).
        address: of the first number.
        row: bytes from row to row.
    """

    array: Array
    address: int
    row: int


class PackedMatrix(NamedTuple):
    """A matrix that programs multiply by.

    Attributes:
        name: unlike that of any other matrix of the model.
        vectors: of lanes, which its lines fill.
        K: columns.
        make: gives (vectors, lanes, K), each vector's lines, zeros after the last.
    """

    name: Hashable
    vectors: int
    K: int
    make: Callable[[], Array]


class Packs:
    """A model's matrices as tiles read them, each packed once for all streams of the model.

    Args:
        narrow: keep weights as bfloat16; they are such numbers already.
    """

    def __init__(self, narrow: bool) -> None:
        self.narrow = narrow
        self._packed: dict[Hashable, Array] = {}

    def address(self, matrix: PackedMatrix, parts: list[tuple[int, int]]) -> list[int]:
        """Where (K, vectors, lanes) lie, for each of the parts that the vectors are cut into."""
        names = [(matrix.name, part) for part in parts]
        if any(name not in self._packed for name in names):
            lines = matrix.make()
            for name, (first, v) in zip(names, parts, strict=True):
                # Another thread may be as far; what is there stays, for its address is given away.
                packed = self._pack(lines[first : first + v].transpose(2, 0, 1))
                self._packed.setdefault(name, packed)
        return [self._packed[name].ctypes.data for name in names]

    def _pack(self, panel: Array) -> Array:
        """Begins at a cache line; narrow ones by pairs, the odd k in the upper halves."""
        if self.narrow:
            bits = np.ascontiguousarray(panel).view(np.uint32)
            pairs = bits[0::2] >> 16
            pairs[: len(bits) // 2] |= bits[1::2]
            panel = pairs.view(np.float32)
        packed = lined_up(panel.size, panel.dtype)
        packed[:] = panel.reshape(-1)
        return packed


class CallList:
    """The calls of one step, in order, and what they read and write.

    Args:
        kind: the numbers it computes with.
        target: the machine compiled for.
        batch: B.
        packs: of the model's matrices.

    Attributes:
        B: the batch.
        dtype: of the numbers.
        flops: of one step, for the prediction how long it takes.
    """

    def __init__(self, kind: Kind, target: Machine, batch: int, packs: Packs) -> None:
        self.kind, self.target, self.B, self.packs = kind, target, batch, packs
        self.dtype = np.dtype(np.float32 if kind.bytes == 4 else np.float64)
        self.flops = 0.0
        self._words = array("q", [1, 0])
        self._held: list[Any] = []

    def padded(self, count: int) -> int:
        """So many numbers in whole vectors."""
        return whole_vectors(count, self.kind.lanes)

    def rows(self, rows: int, numbers: int) -> AlignedRows:
        """Zeros that live as long as the program."""
        flat = lined_up(rows * numbers, self.dtype)
        self._held.append(flat)
        return AlignedRows(flat.reshape(rows, numbers), flat.ctypes.data, numbers * self.kind.bytes)

    def add(self, names: tuple[str, ...], function: int, *arguments: int) -> None:
        """One call of a function that takes arguments of these names."""
        rest = OPERATION - 2 - len(arguments)
        self._words.extend([OPERATIONS.index(names), function, *arguments, *([0] * rest)])
        self._words[1] += 1

    def sum(self, x: AlignedRows, z: AlignedRows, width: int) -> AlignedRows:
        """x + z."""
        out = self.rows(self.B, self.padded(width))
        blocks = self.padded(width) // self.kind.lanes
        self.add(ADD, 0, self.B, blocks, *(n for v in (x, z, out) for n in v[1:]))
        return out

    def numbers(self, values: Sequence[int]) -> int:
        """Where whole numbers lie, as long as the program lives."""
        self._held.append(array("q", values))
        return int(self._held[-1].buffer_info()[0])

    def product(
        self,
        matrix: PackedMatrix,
        x: AlignedRows,
        start: tuple[int, int],
        places: list[int],
        out: AlignedRows,
    ) -> None:
        """out = start + x W^T, one chain a number.

        Args:
            matrix: W.
            x: (B, at least K).
            start: where chains start, and bytes from row to row there.
            places: bytes from the start of a row to each vector's numbers there.
            out: (B, vectors * lanes).
        """
        V, K, narrow, registers = matrix.vectors, matrix.K, self.packs.narrow, self.target.registers
        self.flops += 2.0 * V * self.kind.lanes * K * self.B
        where = self.numbers(places)
        cut = _parts(V, widest(registers, self.B))
        for (first, v), packed in zip(cut, self.packs.address(matrix, cut), strict=True):
            for row, r in _parts(self.B, highest(registers, self.B, narrow)):
                self.add(
                    TILE, stream_tile(self.kind, self.target, r, v, narrow),
                    start[0] + start[1] * row, start[1], where + 8 * first,
                    x.address + x.row * row, x.row, 0, packed, v * self.kind.size, 1, K,
                    out.address + out.row * row + first * self.kind.size, out.row, packed, 0,
                )  # fmt: skip

    def address(self) -> int:
        """Of the program, when all calls are in it."""
        return self._words.buffer_info()[0]

    def repeat(self, times: int) -> None:
        """How often one call of the region works it off."""
        self._words[HEAD - 2] = times

    def lines(self, matrix: Array) -> Array:
        """A matrix (lines, K) as vectors of lines, (vectors, lanes, K), zeros after the last."""
        count, K = matrix.shape
        padded = np.zeros((self.padded(count), K), self.dtype)
        padded[:count] = matrix
        return padded.reshape(-1, self.kind.lanes, K)


def lined_up(count: int, dtype: Any) -> Array:
    """So many zeros that begin at a cache line."""
    memory = fresh(count * np.dtype(dtype).itemsize)
    memory.fill(0)
    return memory.view(dtype)


def _parts(total: int, most: int) -> list[tuple[int, int]]:
    """First and size of the parts that so many things are cut into, as even as can be."""
    count = -(-total // most)
    bounds = [total * i // count for i in range(count + 1)]
    return [(a, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
