"""Cells that the compiler does not take, and why, in words that `explain` tells."""

from __future__ import annotations

from collections.abc import Iterator

from throughtime.cells.cell import Cell
from throughtime.compiler.derivative import derivative
from throughtime.compiler.graph import NUMBER, Graph
from throughtime.compiler.inputs import state_shapes
from throughtime.compiler.rowwise import ROWWISE
from throughtime.compiler.trace import trace
from throughtime.compiler.widths import HIDDEN, node_widths, spread_node


def reason(cell: Cell) -> str | None:
    """Why the compiler does not take the cell, or None."""
    graph, name = trace(cell), type(cell).__name__
    if graph.unsupported:
        operation, line = graph.unsupported[0]
        return f"{operation} has no rule, which keeps {name} uncompiled: {line}"
    return next(_odd_nodes(cell, graph), None)


def _odd_nodes(cell: Cell, graph: Graph) -> Iterator[str]:
    name = type(cell).__name__
    matrices: set[str] = set()
    states = (shape[-1] for shape in state_shapes(cell).values())
    even = {*node_widths(graph), *states} == {HIDDEN}
    for node in graph.nodes:
        over = [graph.nodes[i].shape[-1] for i in node.inputs] if node.op in ROWWISE else []
        if any(width != HIDDEN for width in over):
            yield f"{name} computes over {over[0]} units of a row ({node.op}): {node.line}"
        if over and not even:
            yield f"{name} computes over units ({node.op}) and has other widths: {node.line}"
        if "1" in node.shape and node.shape != NUMBER:
            yield f"{name} computes one number for all rows ({node.op}): {node.line}"
        if node.op == "U":
            matrix = str(node.constants[0])
            if matrix in matrices:
                yield f"{name} multiplies by U.{matrix} twice: {node.line}"
            matrices.add(matrix)
    number = any(node.shape == NUMBER for node in graph.nodes)
    spread = spread_node(derivative(graph)) if number else None
    if spread is not None:
        yield f"{name} computes with one number over units of another width: {spread.line}"
