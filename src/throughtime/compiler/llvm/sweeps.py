"""Walks over the units of a row that sum over them, and the order in which they do.

    sum = fold of 16 strands; strand j: x[j] + x[j + 16] + ..., in order
    fold: strand j + strand j + 8, then + 4, + 2, + 1

The strands are the same for vectors of any length, so every machine has the same bits. Units behind
the last count as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from llvmlite import ir

from throughtime.compiler.graph import Graph
from throughtime.compiler.llvm import maths
from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.places import Loads, loader
from throughtime.compiler.llvm.pointwise import Pointwise
from throughtime.compiler.llvm.rows import lanes_below
from throughtime.compiler.sweeps import Sweep
from throughtime.compiler.widths import HIDDEN

STRANDS: Final = 16
"""Chains of one sum over units, as many as the widest vector has numbers."""

_JOIN: Final = {"row_sum": "add", "row_max": "maximum"}
_NOTHING: Final = {"row_sum": 0.0, "row_max": -math.inf}

Finish = Callable[[Pointwise, Num, Num], None]


class Row(NamedTuple):
    """A row of units that code walks over.

    Attributes:
        e: the function being written.
        graph: whose nodes are computed.
        loads: where the values that begin at a byte of the row's lines are.
        lines: where walks leave what later ones read, and bytes from one line to the next.
        held: nodes of one number a row that are there, in all lanes.
    """

    e: Emit
    graph: Graph
    loads: Callable[[Num], Loads]
    lines: tuple[Num, Num]
    held: dict[int, Any]


def write_sweeps(row: Row, sweeps: Sequence[Sweep], finish: Finish) -> None:
    """Write the walks.

    Args:
        row: over which; it holds all single numbers behind them.
        sweeps: what each computes.
        finish: writes what the last does with the values of a vector of units, given the bytes
            before it and the units from it on.
    """
    e = row.e
    once = row.loads(e.number(0))
    single = Pointwise(e, row.graph, {HIDDEN: e.given["H"]}, once)
    place = {i: k for k, i in enumerate(i for sweep in sweeps for i in sweep.lines)}
    there: list[int] = []
    for sweep in sweeps:
        once |= _held(row)
        row.held.update({i: single.value(i) for i in sweep.numbers})
        starts = [v for r in sweep.reductions for v in _starts(e, row.graph.nodes[r].op)]
        with e.loop(e.given["H_row"] // e.kind.size, *starts) as block:
            column = block.index * e.kind.size
            left = e.given["H"] - block.index * e.kind.lanes
            at = {i: row.lines[0] + row.lines[1] * k + column for i, k in place.items()}
            loads = row.loads(column) | _held(row) | {i: loader(e, at[i]) for i in there}
            values = Pointwise(e, row.graph, {HIDDEN: e.given["H"]}, loads)
            for i in sweep.lines:
                e.store(values.value(i), at[i])
            block.next = _grown(row, sweep, values, block.values, left)
            if not sweep.reductions:
                finish(values, column, left)
        there += sweep.lines
        for r, strands in zip(sweep.reductions, _parted(e, block.values), strict=True):
            row.held[r] = _folded(e, row.graph.nodes[r].op, strands)


def _held(row: Row) -> Loads:
    return {i: _constant(v) for i, v in row.held.items()}


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _starts(e: Emit, op: str) -> list[Any]:
    """The strands of a reduction before its first unit."""
    return [e.kind.vector([_NOTHING[op]] * e.kind.lanes)] * (STRANDS // e.kind.lanes)


def _parted(e: Emit, values: list[Any]) -> list[list[Any]]:
    """The strands of each reduction."""
    each = STRANDS // e.kind.lanes
    return [values[i : i + each] for i in range(0, len(values), each)]


def _grown(row: Row, sweep: Sweep, values: Pointwise, strands: list[Any], left: Num) -> list[Any]:
    """The strands with one more vector of units: the first takes it, and comes last."""
    e, found = row.e, []
    lanes = lanes_below(e, left) if sweep.reductions else None
    for r, (first, *others) in zip(sweep.reductions, _parted(e, strands), strict=True):
        node = row.graph.nodes[r]
        nothing = e.kind.vector([_NOTHING[node.op]] * e.kind.lanes)
        there = e.b.select(lanes, values.value(node.inputs[0]), nothing)
        found += [*others, maths.apply(e.b, _JOIN[node.op], [first, there])]
    return found


def _folded(e: Emit, op: str, strands: list[Any]) -> Any:
    """One number in all lanes; strands that have changed places in turn meet the same ones."""

    def join(x: Any, w: Any) -> Any:
        return maths.apply(e.b, _JOIN[op], [x, w])

    while len(strands) > 1:
        half = len(strands) // 2
        strands = [join(strands[i], strands[i + half]) for i in range(half)]
    (value,), width = strands, e.kind.lanes // 2
    while width:
        value = join(value, _moved(e, value, width))
        width //= 2
    return _moved(e, value, 0, spread=True)


def _moved(e: Emit, value: Any, by: int, spread: bool = False) -> Any:
    """The lanes `by` further on; or the first one's number in all."""
    places = [0 if spread else (i + by) % e.kind.lanes for i in range(e.kind.lanes)]
    mask = ir.VectorType(ir.IntType(32), e.kind.lanes)(places)
    return e.b.shuffle_vector(value, value, mask)
