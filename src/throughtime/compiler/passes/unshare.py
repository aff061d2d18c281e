"""Steps that multiply by one matrix several times, as steps with a matrix for each product.

So each product has a place of its own, including its weights and their gradient; who runs the step
hands the same weights in twice, and adds up what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import count
from typing import Any

from throughtime.cell.contract import Cell
from throughtime.cell.layout import Layout
from throughtime.compiler.graph import Graph, Unsupported
from throughtime.compiler.trace import trace, trace_at


class Apart(Cell):
    """A cell with a gate or product more for each further use of a matrix.

    Args:
        cell: whose step this is.
        size: the hidden size that its step is written for; None is any.

    Attributes:
        copies: name of what was added -> name of what it is the same as.
    """

    def __init__(self, cell: Cell, size: int | None = None) -> None:
        names = _copies(cell, size)
        self.cell, self.size, self.copies = cell, size, dict(names.values())
        of = self.copies.items()
        self.gates = (*cell.gates, *(copy for copy, name in of if name in cell.gates))
        more = {copy: cell.products[name] for copy, name in of if name in cell.products}
        self.products = {**cell.products, **more}
        self.blocks = {name: cell.blocks_of(self.copies.get(name, name)) for name in self.products}
        self.state, self.vectors, self.inputs = cell.state, cell.vectors, cell.inputs

    @cached_property
    def layout(self) -> Layout:
        """What the cell touches, and what was added."""
        before, copies = self.cell.layout, self.copies
        return replace(
            before,
            recurrent_gates=(*before.recurrent_gates, *(g for g in self.gates if g in copies)),
            products=(*before.products, *(p for p in self.products if p in copies)),
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
def apart(cell: Cell, H: int | None = None) -> Cell:
    """The cell with a matrix for each product, and written for H where only that has rules; itself,
    if it has a matrix for each and is written for any size."""
    if isinstance(cell, Apart):
        return cell
    size = size_of(cell, H)
    return Apart(cell, size) if size is not None or _copies(cell, None) else cell


def size_of(cell: Cell, H: int | None) -> int | None:
    """The hidden size that a step must be written for; None where it is written for any, or not."""
    if not H or H == 1 or not trace(cell).unsupported:
        return None
    return None if trace_at(cell, H).unsupported else H


def why_not(cell: Cell, H: int | None) -> Unsupported | None:
    """The first operation of a step without a rule, at this size; None where there is none."""
    unsupported = trace(cell).unsupported
    if not unsupported or size_of(cell, H) is not None:
        return None
    return (trace_at(cell, H).unsupported if H and H > 1 else unsupported)[0]


def step_graph(cell: Cell) -> Graph:
    """The graph of a cell's step, each of its products with a matrix of its own."""
    cell, size = (cell.cell, cell.size) if isinstance(cell, Apart) else (cell, None)
    graph, names = _graph(cell, size), _copies(cell, size)
    nodes = list(graph.nodes)
    for index, (copy, _) in names.items():
        nodes[index] = replace(nodes[index], constants=(copy,))
    products = (
        p._replace(matrix=names[p.result][0]) if p.result in names else p for p in graph.products
    )
    return replace(graph, nodes=tuple(nodes), products=tuple(products)) if names else graph


def _graph(cell: Cell, size: int | None) -> Graph:
    return trace(cell) if size is None else trace_at(cell, size)


def _copies(cell: Cell, size: int | None) -> Mapping[int, tuple[str, str]]:
    """Node of a product -> its matrix's new name and the old one, but for each one's first use."""
    taken = {*cell.gates, *cell.products, *(v.removeprefix("weight_") for v in cell.vectors)}
    used: set[str] = set()
    copies = {}
    for index, node in enumerate(_graph(cell, size).nodes):
        if node.op == "U":
            name = str(node.constants[0])
            if name in used:
                copy = next(c for k in count(2) if (c := f"{name}_{k}") not in taken)
                taken.add(copy)
                copies[index] = copy, name
            used.add(name)
    return copies
