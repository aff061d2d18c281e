"""Sums of products in an object, and its constants: matrices packed as the sums read them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from throughtime.compiler.llvm.values import Bits, Num, Vector, fma
from throughtime.compiler.llvm.writer import Emit
from throughtime.export.program import SCALE_SHIFT, SCALE_START, Values, narrow_int8, take_halves

_LINE = 64


def pad_count(count: int, lanes: int) -> int:
    """So many numbers in whole vectors."""
    return -(-count // lanes) * lanes


class Constants:
    """Writes constants into a module.

    Args:
        module: where they go.
        lanes: of a vector.
        weights: how matrices are stored.
    """

    def __init__(self, module: ir.Module, lanes: int, weights: str) -> None:
        self.module, self.lanes, self.weights = module, lanes, weights
        self._count = 0

    def table(self, values: np.ndarray[Any, Any], name: str = "") -> Any:
        """A constant of these numbers, of their own kind; it begins at a cache line."""
        kind = ir.ArrayType(ir.IntType(8), values.nbytes)
        data = bytearray(np.ascontiguousarray(values).tobytes())
        table = ir.GlobalVariable(self.module, kind, name or f"table_{self._count}")
        self._count += 1
        table.initializer = ir.Constant(kind, data)
        table.global_constant = True
        table.linkage = "internal"
        table.align = _LINE
        return table

    def lines(self, values: Values) -> Any:
        """(lines, size) as float32, zeros after each line."""
        return self.table(self._pad_rows(np.asarray(values, np.float32).T).T)

    def packed(self, matrices: list[Values]) -> tuple[Any, Any]:
        """Matrices of as many columns, column by column, their lines side by side in vectors.

        Returns:
            The weights, (columns, vectors, lanes), and int8's scales as bytes, (vectors, lanes),
            or None.
        """
        if self.weights == "int8":
            narrow = [narrow_int8(m) for m in matrices]
            whole = np.concatenate([self._pad_rows(n.whole) for n in narrow]).T
            codes = np.concatenate([self._pad_rows(n.code[:, None]) for n in narrow])
            return self.table(whole), self.table(codes)
        rows = np.concatenate([self._pad_rows(m) for m in matrices]).T
        return self.table(take_halves(rows) if self.weights == "bfloat16" else rows), None

    def plain(self, table: Values) -> tuple[Any, Any]:
        """A table of lines that are looked up: each padded to whole vectors."""
        scale = None
        values: np.ndarray[Any, Any] = table
        if self.weights == "int8":
            narrow = narrow_int8(table)
            values, scale = narrow.whole, self.table(narrow.code)
        wide = self._pad_rows(values.T).T
        return self.table(take_halves(wide) if self.weights == "bfloat16" else wide), scale

    def _pad_rows(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The lines, and lines of zeros that fill the last vector."""
        return np.pad(matrix, ((0, -len(matrix) % self.lanes), (0, 0)))

    @property
    def bytes(self) -> int:
        """Of one weight."""
        return {"float32": 4, "bfloat16": 2, "int8": 1}[self.weights]


_AT_ONCE = 4  # columns of one turn of a loop where a tile has few vectors
_STEPS = 4  # steps of a block that a tile of weights is multiplied by at once


class Strides(NamedTuple):
    """Steps one after the other, and how far apart they lie.

    Attributes:
        many: how many.
        source, out: bytes from one step's v, and its sums, to the next one's.
    """

    many: Num
    source: int
    out: int


class Sums:
    """Writes sums: out = start + W v.

    Args:
        e: the function being written.
        constants: where weights go.
        fused: whether the processor has fused multiply-adds; each sum then is one chain of them,
            as a stream's is.
        most: vectors of a tile.
    """

    def __init__(self, e: Emit, constants: Constants, fused: bool, most: int) -> None:
        self.e, self.constants, self.fused, self.most = e, constants, fused, most

    def write(
        self, weights: Any, scales: Any, columns: int, source: Num, starts: list[Num | None],
        outs: list[Num], steps: Strides | None = None,
    ) -> None:  # fmt: skip
        """All vectors of packed weights.

        Args:
            weights, scales: as `Constants.packed` gives them.
            columns: of the matrices.
            source: where v lies.
            starts: where each vector of sums starts; None is zero.
            outs: where each goes.
            steps: of how many steps, if it is not one; a tile of weights is read once for all.
        """
        count, base = len(outs), self.e.place(weights)
        parts = -(-count // (self.most if steps is None else max(1, self.most // _STEPS)))
        bounds = [count * i // parts for i in range(parts + 1)]
        for first, last in zip(bounds, bounds[1:], strict=False):
            tile = partial(self._tile, (base, count, scales), columns, starts, range(first, last))
            if steps is None:
                tile([(source, outs)])
            else:
                self._each_step(tile, source, outs, steps)

    def _each_step(
        self, tile: Callable[..., None], source: Num, outs: list[Num], steps: Strides
    ) -> None:
        """A tile of all steps: several at once, then those that are left."""
        whole = steps.many // _STEPS * _STEPS
        for first, last, many in ((self.e.number(0), whole, _STEPS), (whole, steps.many, 1)):
            with self.e.loop(last, start=first, step=many) as t:
                moves = [t.index + s for s in range(many)]
                tile([(source + m * steps.source, [o + m * steps.out for o in outs])
                      for m in moves])  # fmt: skip

    def _tile(
        self, packed: tuple[Num, int, Any], columns: int, starts: list[Num | None], places: range,
        steps: list[tuple[Num, list[Num]]],
    ) -> None:  # fmt: skip
        """Some vectors of the sums of each step: where its v lies, and where its sums go."""
        e, (base, count, scales) = self.e, packed
        begun = [self._start(starts[i]) for i in places] * len(steps)
        chains = begun if scales is None else [e.constant(0)] * len(begun)
        size = self.constants.bytes * e.kind.lanes
        many = _AT_ONCE if len(chains) < 8 else 1
        whole = columns // many * many if columns > 2 * many else 0
        first = base + places[0] * size

        def column(chains: list[Vector], k: Num) -> list[Vector]:
            at = first + k * (count * size)
            w = [self.weight(at + j * size) for j in range(len(places))]
            x = [e.spread(e.real(source + k * 4)) for source, _ in steps]
            pairs = [(x_t, w_j) for x_t in x for w_j in w]
            return [self._sum(*pair, c) for pair, c in zip(pairs, chains, strict=True)]

        with e.loop(e.number(whole), *chains, step=many) as k:
            new = list(k.values)
            for i in range(many):
                new = column(new, k.index + i)
            k.next = new
        chains = k.values if whole else chains
        for i in range(whole, columns):
            chains = column(chains, e.number(i))
        ends = [(i, outs[i]) for _, outs in steps for i in places]
        for start, chain, (i, out) in zip(begun, chains, ends, strict=True):
            e.store(chain if scales is None else self._scaled(scales, i, chain, start), out)

    def _scaled(self, scales: Any, vector: int, total: Vector, start: Vector) -> Vector:
        """start + scale total, a scale a line."""
        place = self.e.place(scales) + vector * self.e.kind.lanes
        return self._sum(self.scale(place, self.e.kind.lanes), total, start)

    def scale(self, at: Num, lanes: int) -> Vector:
        """int8's scales, of so many bytes."""
        bytes, whole = (ir.VectorType(ir.IntType(n), lanes) for n in (8, 32))
        b = self.e.b
        codes = Bits(b, b.zext(b.load(self.e.pointer(at), typ=bytes, align=1), whole))
        return ((codes << SCALE_SHIFT) + SCALE_START).number()

    def _start(self, place: Num | None) -> Vector:
        return self.e.constant(0) if place is None else self.e.load(place)

    def _sum(self, x: Vector, w: Vector, total: Vector) -> Vector:
        return fma(x, w, total) if self.fused else total + x * w

    def weight(self, at: Num) -> Vector:
        """A vector of weights as float32."""
        e, lanes = self.e, self.e.kind.lanes
        if self.constants.weights == "float32":
            return e.load(at)
        whole = ir.VectorType(ir.IntType(32), lanes)
        narrow = ir.VectorType(ir.IntType(8 * self.constants.bytes), lanes)
        loaded = e.b.load(e.pointer(at), typ=narrow, align=self.constants.bytes)
        if self.constants.weights == "bfloat16":
            return (Bits(e.b, e.b.zext(loaded, whole)) << 16).number()
        return Vector(e.b, e.b.sitofp(e.b.sext(loaded, whole), e.kind.vector))
