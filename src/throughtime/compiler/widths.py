"""The widths of a step: which of its values lie side by side, unit by unit.

Pointwise operations join values of one width, so the pointwise part of a step falls into one part
for each width, which is a loop of its own in code. A number a row, such as a direct input of width
1, is the same for all units of hidden_size. A product or a state of width 1 has one unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from throughtime.cells.cell import Cell
from throughtime.compiler.derivative import derivative
from throughtime.compiler.graph import Graph, Node
from throughtime.compiler.inputs import symbolic_width

HIDDEN: Final = "hidden_size"

NUMBER: Final = ("B", "1")
"""The shape of one number a row, and of a vector of one unit."""

_ONE_UNIT: Final = frozenset({"s", "U", "d", "transposed", "mask"})
"""Operations that give a vector of one unit where their shape is NUMBER."""


@dataclass(frozen=True)
class Widths:
    """The widths of all nodes of a derivative, as names or numbers in words.

    Attributes:
        names: every width that there is; the first is hidden_size.
        of: for each node its own.
        states: for each state its own.
    """

    names: tuple[str, ...]
    of: tuple[str, ...]
    states: tuple[str, ...]

    @cached_property
    def even(self) -> bool:
        """Whether all is as wide as hidden_size."""
        return len(self.names) == 1

    def states_of(self, width: str) -> tuple[int, ...]:
        """Numbers of the states that are so wide."""
        return tuple(k for k, w in enumerate(self.states) if w == width)


def widths_of(graph: Graph, states: tuple[str, ...]) -> Widths:
    """The widths of a derivative's nodes, and of states that no step reads."""
    of = _widths(graph)
    asked = (str(n.constants[0]) for n in graph.nodes if n.op == "width")
    names = dict.fromkeys([HIDDEN, *states, *of, *(w for w in asked if not w.isdigit())])
    return Widths(tuple(names), of, states)


def odd_widths(cell: Cell, graph: Graph) -> Iterator[str]:
    """Why the widths of a step keep it uncompiled."""
    name = type(cell).__name__
    for given in cell.layout.inputs:
        if symbolic_width(cell, cell.inputs[given]) not in ("1", HIDDEN):
            yield f"{name} reads the direct input {given}, whose width is not 1 or {HIDDEN}"
    number = any(node.shape == NUMBER for node in graph.nodes)
    spread = _spread_node(derivative(graph)) if number else None
    if spread is not None:
        yield f"{name} computes with one number over units of another width: {spread.line}"


def _spread_node(graph: Graph) -> Node | None:
    """A node of a derivative that joins one number and units of another width, if there is one."""
    of = _widths(graph)
    for index, node in enumerate(graph.nodes):
        wanted = HIDDEN if node.op == "row_sum" else of[index]
        for i in () if node.op in ("U", "transposed") else node.inputs:
            free = graph.nodes[i].shape in ((), (HIDDEN,)) or graph.nodes[i].op == "full"
            if not free and of[i] != wanted:
                return node
    ends = (i for name, i in graph.outputs if name.startswith("d_a.") and of[i] == "1")
    return next((graph.nodes[i] for i in ends), None)


def _widths(graph: Graph) -> tuple[str, ...]:
    """For each node, the width it is computed at: constants, where hidden_size is, go with it."""
    found: list[str] = []
    for node in graph.nodes:
        width = node.shape[-1] if node.shape else HIDDEN
        if node.shape == NUMBER and node.op not in _ONE_UNIT:
            of = {found[i] for i in node.inputs if graph.nodes[i].shape == NUMBER}
            width = "1" if "1" in of else HIDDEN
        found.append(width)
    return tuple(found)
