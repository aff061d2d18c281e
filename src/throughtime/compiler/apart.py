"""Steps that multiply by one matrix several times, as steps with a matrix for each product.

So each product has a place of its own, its weights and their gradient among it; who runs the step
hands the same weights in twice, and adds up what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import count
from typing import Any

from throughtime.cells.cell import Cell
from throughtime.cells.layout import Layout
from throughtime.compiler.graph import Graph
from throughtime.compiler.trace import trace


class Apart(Cell):
    """A cell with a gate or product more for each further use of a matrix.

    Args:
        cell: whose step this is.

    Attributes:
        copies: name of what was added -> name of what it is the same as.
    """

    def __init__(self, cell: Cell) -> None:
        names = _copies(cell)
        self.cell, self.copies = cell, dict(names.values())
        of = self.copies.items()
        self.gates = (*cell.gates, *(copy for copy, name in of if name in cell.gates))
        more = {copy: cell.products[name] for copy, name in of if name in cell.products}
        self.products = {**cell.products, **more}
        self.blocks = {name: cell.blocks_of(self.copies.get(name, name)) for name in self.products}
        self.state, self.vectors, self.inputs = cell.state, cell.vectors, cell.inputs

    @cached_property
    def layout(self) -> Layout:
        """What the cell touches, and what was added."""
        found, copies = self.cell.layout, self.copies
        return replace(
            found,
            recurrent_gates=(*found.recurrent_gates, *(g for g in self.gates if g in copies)),
            products=(*found.products, *(p for p in self.products if p in copies)),
        )

    def layout_at(self, hidden_size: int) -> Layout:
        """The same, since a cell touches the same names at every size."""
        self.cell.layout_at(hidden_size)
        return self.layout

    def width(self, width: int | str, hidden_size: int) -> int:
        """The cell's own."""
        return self.cell.width(width, hidden_size)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, ...]:
        """The cell's own, where what was added stands for the same matrices."""
        return self.cell.step(a, U, s, p)


@lru_cache(maxsize=256)
def apart(cell: Cell) -> Cell:
    """The cell with a matrix for each product; itself, if it has one for each."""
    return Apart(cell) if not isinstance(cell, Apart) and _copies(cell) else cell


def step_graph(cell: Cell) -> Graph:
    """The graph of a cell's step, each of its products with a matrix of its own."""
    cell = cell.cell if isinstance(cell, Apart) else cell
    graph, names = trace(cell), _copies(cell)
    nodes = list(graph.nodes)
    for index, (copy, _) in names.items():
        nodes[index] = replace(nodes[index], constants=(copy,))
    products = (
        p._replace(matrix=names[p.result][0]) if p.result in names else p for p in graph.products
    )
    return replace(graph, nodes=tuple(nodes), products=tuple(products)) if names else graph


def _copies(cell: Cell) -> Mapping[int, tuple[str, str]]:
    """Node of a product -> its matrix's new name and the old one, but for each one's first use."""
    taken = {*cell.gates, *cell.products, *(v.removeprefix("weight_") for v in cell.vectors)}
    used: set[str] = set()
    found = {}
    for index, node in enumerate(trace(cell).nodes):
        if node.op == "U":
            name = str(node.constants[0])
            if name in used:
                copy = next(c for k in count(2) if (c := f"{name}_{k}") not in taken)
                taken.add(copy)
                found[index] = copy, name
            used.add(name)
    return found
