"""Lines of a row that are made of whole lines: parts of them, several one after the other, sums.

Running sums are taken number by number, in order, so that every machine has the same bits.
"""

from __future__ import annotations

from typing import Any

from throughtime.compiler.graph import NUMBER, Node
from throughtime.compiler.llvm.loops.phases import units_of
from throughtime.compiler.llvm.loops.rows import load_part, store_part
from throughtime.compiler.llvm.row import Row
from throughtime.compiler.llvm.values import Num


def write_line(row: Row, index: int, place: dict[int, int]) -> None:
    """Make the line of a node after the walk that left what it is made of.

    Args:
        row: to which it belongs; it holds what is one number.
        index: of the node.
        place: the number of each node's line.
    """
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
