"""Cells that the compiler does not take, and why, in words that `explain` tells."""

from __future__ import annotations

from collections.abc import Iterator

from throughtime.cells.cell import Cell
from throughtime.compiler.graph import NUMBER, Graph
from throughtime.compiler.trace import trace


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
    for node in graph.nodes:
        if "1" in node.shape and node.shape != NUMBER:
            yield f"{name} computes one number for all rows ({node.op}): {node.line}"
        if node.op == "U":
            matrix = str(node.constants[0])
            if matrix in matrices:
                yield f"{name} multiplies by U.{matrix} twice: {node.line}"
            matrices.add(matrix)
