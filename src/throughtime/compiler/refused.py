"""Cells that the compiler does not take, and why, in words that `explain` tells."""

from __future__ import annotations

from collections.abc import Iterator

from throughtime.cells.cell import Cell
from throughtime.compiler.apart import step_graph
from throughtime.compiler.graph import NUMBER, Graph


def reason(cell: Cell) -> str | None:
    """Why the compiler does not take the cell, or None."""
    graph = step_graph(cell)
    if graph.unsupported:
        operation, line = graph.unsupported[0]
        return f"{operation} has no rule, which keeps {graph.name} uncompiled: {line}"
    return next(_odd_nodes(graph), None)


def _odd_nodes(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        if "1" in node.shape and node.shape != NUMBER:
            yield f"{graph.name} computes one number for all rows ({node.op}): {node.line}"
