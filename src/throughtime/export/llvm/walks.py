"""Walks over units of an object: the pointwise code of the compiler, on an export's own places."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.llvm.cell.pointwise import Pointwise
from throughtime.compiler.llvm.cell.sweeps import STRANDS, folded
from throughtime.compiler.llvm.loops.rows import lanes_below
from throughtime.compiler.llvm.maths import operations
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit
from throughtime.export.program import Place, Stage, Walk

_JOIN: Final = {"row_sum": "add", "row_max": "maximum"}

_UNROLLED: Final = 2
"""So many blocks of units are written out, without a loop."""


class Walks:
    """The walks of one stage.

    Args:
        e: the function being written.
        stage: what is computed.
        address: of a place.
    """

    def __init__(self, e: Emit, stage: Stage, address: Callable[[Place], Num]) -> None:
        self.e, self.stage, self.address = e, stage, address
        self.units = {name: e.number(size) for name, size in stage.units.items()}
        self.held: dict[int, Any] = {}
        self.there: dict[int, Place] = {}

    def write(self, walk: Walk) -> None:
        """One walk, the single numbers before it first."""
        e = self.e
        single = Pointwise(e, self.stage.graph, self.units, self._loads(e.number(0)))
        found = {i: single.value(i) for i in walk.numbers if i not in self.held}
        self.held |= found
        blocks = -(-walk.size // e.kind.lanes)
        strands = [v for r in walk.reductions for v in self._starts(r)]
        if not walk.lines and not walk.stores and not walk.reductions:
            return
        if blocks <= _UNROLLED:
            for block in range(blocks):
                strands = self._block(walk, e.number(block), strands)
        else:
            with e.loop(e.number(blocks), *strands) as loop:
                loop.next = self._block(walk, loop.index, loop.values)
            strands = loop.values
        each = STRANDS // e.kind.lanes
        for n, r in enumerate(walk.reductions):
            join = _JOIN[self.stage.graph.nodes[r].op]
            self.held[r] = folded(join, strands[n * each : (n + 1) * each])
        self.there |= dict(walk.lines)

    def _block(self, walk: Walk, block: Num, strands: list[Any]) -> list[Any]:
        """A vector of units; gives the strands behind it."""
        e, nodes = self.e, self.stage.graph.nodes
        column = block * e.kind.size
        values = Pointwise(e, self.stage.graph, self.units, self._loads(column))
        results = [(values.value(i), place) for i, place in (*walk.lines, *walk.stores)]
        each, found = STRANDS // e.kind.lanes, list[Any]()
        for n, r in enumerate(walk.reductions):
            first, *others = strands[n * each : (n + 1) * each]
            left = e.number(walk.size) - block * e.kind.lanes
            value = values.value(nodes[r].inputs[0])
            if walk.size % e.kind.lanes:
                value = where(lanes_below(e, left), value, self._nothing(r))
            found += [*others, operations.apply(_JOIN[nodes[r].op], [first, value])]
        for value, place in results:
            e.store(value, self.address(place) + column)
        return found

    def _loads(self, column: Num) -> dict[int, Callable[[], Any]]:
        """What loads each node that is there."""
        places: dict[int, Place | float] = {**self.stage.loads, **self.there}
        found = {i: self._load(place, column) for i, place in places.items()}
        return found | {i: self._constant(v) for i, v in self.held.items()}

    def _load(self, place: Place | float, column: Num) -> Callable[[], Any]:
        e = self.e
        if not isinstance(place, Place):
            number = float(place)
            return lambda: e.constant(number)
        if place.size == 1:
            return lambda: e.spread(e.real(self.address(place)))
        return lambda: e.load(self.address(place) + column)

    def _constant(self, value: Any) -> Callable[[], Any]:
        return lambda: value

    def _nothing(self, r: int) -> Any:
        least = 0.0 if self.stage.graph.nodes[r].op == "row_sum" else -math.inf
        return self.e.constant(least)

    def _starts(self, r: int) -> list[Any]:
        return [self._nothing(r)] * (STRANDS // self.e.kind.lanes)
