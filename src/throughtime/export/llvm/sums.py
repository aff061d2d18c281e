"""Products of an object: tiles of sums that registers hold, one chain over the columns each."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.writer import Emit, Num
from throughtime.export.llvm.constants import Constants

_AT_ONCE = 4
"""Columns of one turn of a loop where a tile has few vectors."""


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
        outs: list[Num],
    ) -> None:  # fmt: skip
        """All vectors of packed weights.

        Args:
            weights, scales: as `Constants.packed` gives them.
            columns: of the matrices.
            source: where v lies.
            starts: where each vector of sums starts; None is zero.
            outs: where each goes.
        """
        count = len(outs)
        parts = -(-count // self.most)
        bounds = [count * i // parts for i in range(parts + 1)]
        base = self._address(weights)
        for first, last in zip(bounds, bounds[1:], strict=False):
            self._tile((base, count, scales), columns, source, starts, outs, range(first, last))

    def _address(self, table: Any) -> Num:
        return Num(self.e.b, self.e.b.ptrtoint(table, ir.IntType(64)))

    def _tile(
        self, packed: tuple[Num, int, Any], columns: int, source: Num, starts: list[Num | None],
        outs: list[Num], places: range,
    ) -> None:  # fmt: skip
        e, (base, count, scales) = self.e, packed
        begun = [self._start(starts[i]) for i in places]
        chains = begun if scales is None else [e.zero() for _ in places]
        size = self.constants.bytes * e.kind.lanes
        many = _AT_ONCE if len(places) < 8 else 1
        whole = columns // many * many if columns > 2 * many else 0
        first = base + places[0] * size

        def column(chains: list[Any], k: Num) -> list[Any]:
            x = e.splat(e.real(source + k * 4))
            at = first + k * (count * size)
            return [self._more(c, x, at + j * size) for j, c in enumerate(chains)]

        with e.loop(e.number(whole), *chains, step=many) as k:
            new = list(k.values)
            for i in range(many):
                new = column(new, k.index + i)
            k.next = new
        chains = k.values if whole else chains
        for i in range(whole, columns):
            chains = column(chains, e.number(i))
        for start, chain, i in zip(begun, chains, places, strict=True):
            e.store(chain if scales is None else self._scaled(scales, i, chain, start), outs[i])

    def _scaled(self, scales: Any, vector: int, total: Any, start: Any) -> Any:
        """start + scale total, a scale a line."""
        scale = self.e.load(self._address(scales) + vector * self.e.kind.size)
        return self._sum(scale, total, start)

    def _start(self, place: Num | None) -> Any:
        return self.e.zero() if place is None else self.e.load(place)

    def _sum(self, x: Any, w: Any, total: Any) -> Any:
        """x w + total."""
        if self.fused:
            return self.e.fma(x, w, total)
        return self.e.b.fadd(total, self.e.b.fmul(x, w))

    def _more(self, total: Any, x: Any, at: Num) -> Any:
        return self._sum(x, self.weight(at), total)

    def weight(self, at: Num) -> Any:
        """A vector of weights as float32."""
        e, lanes = self.e, self.e.kind.lanes
        if self.constants.weights == "float32":
            return e.load(at)
        bits = ir.VectorType(ir.IntType(32), lanes)
        narrow = ir.VectorType(ir.IntType(8 * self.constants.bytes), lanes)
        loaded = e.b.load(e.pointer(at), typ=narrow, align=self.constants.bytes)
        if self.constants.weights == "bfloat16":
            wide = e.b.shl(e.b.zext(loaded, bits), bits([16] * lanes))
            return e.b.bitcast(wide, e.kind.vector)
        return e.b.sitofp(e.b.sext(loaded, bits), e.kind.vector)
