"""Walks over the units of a row that sum over them, and the order in which they do.

    sum = fold of 16 strands; strand j: x[j] + x[j + 16] + ..., in order
    fold: strand j + strand j + 8, then + 4, + 2, + 1

The strands are the same for vectors of any length, so every machine has the same bits. Units after
the last count as nothing. Running sums are taken number by number, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from throughtime.compiler.graph import NUMBER, Node
from throughtime.compiler.llvm.loops.rows import (
    blocks_of,
    lanes_below,
    load_part,
    store_part,
    units_of,
)
from throughtime.compiler.llvm.maths import operations
from throughtime.compiler.llvm.pointwise import Load, Loads, Pointwise, loader
from throughtime.compiler.llvm.values import Num, Vector, where
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.plan import Plan
from throughtime.compiler.sweeps import Sweep


class Row(NamedTuple):
    """A row of units that code walks over.

    Attributes:
        e: the function being written.
        plan: of the cell whose nodes are computed.
        loads: where the values that begin at a byte of the row's lines are.
        lines: where walks leave what later ones read, and bytes from one line to the next.
        held: nodes of one number a row that are there, in all lanes.
    """

    e: Emit
    plan: Plan
    loads: Callable[[Num], Loads]
    lines: tuple[Num, Num]
    held: dict[int, Vector]


STRANDS: Final = 16
"""Chains of one sum over units, as many as the widest vector has numbers."""

_JOIN: Final = {"row_sum": "add", "row_max": "maximum"}
_NOTHING: Final = {"row_sum": 0.0, "row_max": -math.inf}

Finish = Callable[[Pointwise, Num, Num, str], None]


def write_sweeps(row: Row, sweeps: Sequence[Sweep], finish: Finish) -> None:
    """Write the walks.

    Args:
        row: over which; it holds all single numbers after them.
        sweeps: what each computes.
        finish: writes what the last does with the values of a vector of units, given the bytes
            before it, the units from it on and the name of their width.
    """
    e, units = row.e, units_of(row.e, row.plan)
    once = row.loads(e.number(0))
    nodes = row.plan.graph.nodes
    once |= {i: _spread(load) for i, load in once.items() if nodes[i].shape == NUMBER}
    single = Pointwise(e, row.plan.graph, units, once)
    place = {i: k for k, i in enumerate(i for s in sweeps for i in (*s.lines, *s.made))}
    there: list[int] = []
    for sweep in sweeps:
        once |= _held(row)
        row.held.update({i: single.value(i) for i in sweep.numbers})
        for width in units:
            last = not sweep.reductions and not sweep.made
            if last or any(row.plan.widths.of[i] == width for i in sweep.ends):
                _write_walk(row, sweep, width, (place, there), finish)
        there += sweep.lines
        for i in sweep.made:
            write_line(row, i, place)
        there += [i for i in sweep.made if nodes[i].shape != NUMBER]


def _write_walk(
    row: Row, sweep: Sweep, width: str, lines: tuple[dict[int, int], list[int]], finish: Finish
) -> None:
    """The part of a walk over the units of one width.

    Args:
        row, sweep, width, finish: what is walked over, and for what.
        lines: the number of each line, and which are there.
    """
    e, plan, (place, there) = row.e, row.plan, lines
    units, of = units_of(e, plan), plan.widths.of
    reductions = [r for r in sweep.reductions if of[plan.graph.nodes[r].inputs[0]] == width]
    before = [e.constant(_NOTHING[plan.graph.nodes[r].op]) for r in reductions]
    starts = [v for v in before for _ in range(STRANDS // e.kind.lanes)]
    with e.loop(blocks_of(e, units[width]), *starts) as block:
        column = block.index * e.kind.size
        left = units[width] - block.index * e.kind.lanes
        at = {i: row.lines[0] + row.lines[1] * k + column for i, k in place.items()}
        loads = row.loads(column) | _held(row) | {i: loader(e, at[i]) for i in there}
        values = Pointwise(e, plan.graph, units, loads)
        for i in sweep.lines:
            if of[i] == width:
                e.store(values.value(i), at[i])
        block.next = _grown(row, reductions, values, block.values, left)
        if not sweep.reductions and not sweep.made:
            finish(values, column, left, width)
    for r, strands in zip(reductions, _parted(e, block.values), strict=True):
        row.held[r] = folded(_JOIN[plan.graph.nodes[r].op], strands)


def _spread(load: Load) -> Load:
    """What loads a number of a row into all lanes, from a line of one unit or of equal ones."""
    return lambda: _everywhere(load())


def _held(row: Row) -> Loads:
    return {i: _constant(v) for i, v in row.held.items()}


def _constant(value: Vector) -> Load:
    return lambda: value


def _parted(e: Emit, values: list[Vector]) -> list[list[Vector]]:
    """The strands of each reduction."""
    each = STRANDS // e.kind.lanes
    return [values[i : i + each] for i in range(0, len(values), each)]


def _grown(
    row: Row, reductions: list[int], values: Pointwise, strands: list[Vector], left: Num
) -> list[Vector]:
    """The strands with one more vector of units: the first takes it, and comes last."""
    e, longer = row.e, list[Vector]()
    if not reductions:
        return longer
    lanes = lanes_below(e, left)
    for r, (first, *others) in zip(reductions, _parted(e, strands), strict=True):
        node = row.plan.graph.nodes[r]
        nothing = e.constant(_NOTHING[node.op])
        there = where(lanes, values.value(node.inputs[0]), nothing)
        longer += [*others, operations.apply(_JOIN[node.op], [first, there])]
    return longer


def folded(join: str, strands: list[Vector]) -> Vector:
    """One number in all lanes; strands that have changed places in turn meet the same ones."""
    while len(strands) > 1:
        half = len(strands) // 2
        strands = [operations.apply(join, [strands[i], strands[i + half]]) for i in range(half)]
    (value,), lanes = strands, strands[0].lanes
    width = lanes // 2
    while width:
        turned = value.shuffled([(i + width) % lanes for i in range(lanes)])
        value = operations.apply(join, [value, turned])
        width //= 2
    return _everywhere(value)


def _everywhere(value: Vector) -> Vector:
    """The first lane's number in all."""
    return value.shuffled([0] * value.lanes)


def write_line(row: Row, index: int, place: dict[int, int]) -> None:
    """Make a node's line after the walk that left what it is made of, at its number in `place`."""
    node = row.plan.graph.nodes[index]
    if node.op == "slice":
        _write_slice(row, index, place)
    elif node.op == "cat":
        _write_parts(row, node, _line(row, place, index), place)
    else:
        _write_running(row, index, place, back=node.op == "cumsum_back")


def _line(row: Row, place: dict[int, int], index: int) -> Num:
    return row.lines[0] + row.lines[1] * place[index]


def _write_slice(row: Row, index: int, place: dict[int, int]) -> None:
    """Some units of a line; of one unit, its number in all lanes."""
    e, node = row.e, row.plan.graph.nodes[index]
    start, stop = (int(c) for c in node.constants)  # type: ignore[arg-type]
    source = _line(row, place, node.inputs[0]) + start * e.kind.bytes
    if node.shape == NUMBER:
        row.held[index] = e.spread(e.real(source))
        return
    to, count = _line(row, place, index), e.number(stop - start)
    with e.loop(count, step=e.kind.lanes) as k:
        at = k.index * e.kind.bytes
        e.store(load_part(e, source + at, count - k.index), to + at)


def _write_parts(row: Row, node: Node, to: Num, place: dict[int, int]) -> None:
    """One after the other: lines, single numbers, and what is the same everywhere."""
    e, nodes = row.e, row.plan.graph.nodes
    ends = [int(c) for c in node.constants]  # type: ignore[arg-type]
    for i, start, stop in zip(node.inputs, ends, ends[1:], strict=False):
        first, count = to + start * e.kind.bytes, e.number(stop - start)
        if nodes[i].shape == NUMBER and nodes[i].op != "full":
            e.store(row.held[i].first(), first)
            continue
        with e.loop(count, step=e.kind.lanes) as k:
            at = k.index * e.kind.bytes
            store_part(e, _part(row, i, at, place), first + at, count - k.index)


def _part(row: Row, index: int, at: Num, place: dict[int, int]) -> Any:
    """A vector of one part."""
    e, node = row.e, row.plan.graph.nodes[index]
    if node.op == "full":
        return e.constant(float(node.constants[0]))  # type: ignore[arg-type]
    return e.load(_line(row, place, index) + at)


def _write_running(row: Row, index: int, place: dict[int, int], back: bool) -> None:
    """Sums from the first unit on, or from the last."""
    e, plan = row.e, row.plan
    source, to = (_line(row, place, i) for i in (plan.graph.nodes[index].inputs[0], index))
    count = units_of(e, plan)[plan.widths.of[index]]
    with e.loop(count, e.scalar(0)) as k:
        unit = count - 1 - k.index if back else k.index
        at = unit * e.kind.bytes
        total = k.values[0] + e.real(source + at)
        e.store(total, to + at)
        k.next = [total]
