"""The widths of a step: which of its values lie side by side, unit by unit.

Pointwise operations join values of one width, so the pointwise part of a step falls into one part
for each width, which is a loop of its own in code. A number a row, such as a direct input of width
1, is the same for all units of hidden_size. A product or a state of width 1 has one unit; where it
meets units of another width, or a step computes over units, all numbers a row are worked out
before the loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from throughtime.compiler.graph import LINES, NUMBER, Graph
from throughtime.compiler.passes.reductions import REDUCTIONS

HIDDEN: Final = "hidden_size"

_ONE_UNIT: Final = frozenset({"s", "U", "d", "transposed", "mask", "slice"})
"""Operations that give a vector of one unit where their shape is NUMBER."""


@dataclass(frozen=True)
class Widths:
    """The widths of all nodes of a derivative, as names or numbers in words.

    Attributes:
        names: every width that there is; the first is hidden_size.
        of: for each node its own.
        states: for each state its own.
        rowwise: whether code works out numbers of a whole row before it goes over its units.
    """

    names: tuple[str, ...]
    of: tuple[str, ...]
    states: tuple[str, ...]
    rowwise: bool

    @cached_property
    def even(self) -> bool:
        """Whether all is as wide as hidden_size."""
        return len(self.names) == 1


def widths_of(graph: Graph, states: tuple[str, ...]) -> Widths:
    """The widths of a derivative's nodes, and of states that no step reads."""
    of = node_widths(graph)
    asked = (str(n.constants[0]) for n in graph.nodes if n.op == "width")
    names = dict.fromkeys([HIDDEN, *states, *of, *(w for w in asked if not w.isdigit())])
    return Widths(tuple(names), of, states, is_rowwise(graph))


def is_rowwise(graph: Graph) -> bool:
    """Whether the step of a derivative computes over units, or spreads one number over them."""
    whole = REDUCTIONS | LINES
    return any(n.op in whole for n in graph.nodes[: graph.forward]) or _spreads(graph)


def _spreads(graph: Graph) -> bool:
    """Whether a node of a derivative joins one number and units of another width."""
    if not any(node.shape == NUMBER for node in graph.nodes[: graph.forward]):
        return False
    of = node_widths(graph)
    for index, node in enumerate(graph.nodes):
        wanted = HIDDEN if node.op == "row_sum" else of[index]
        for i in () if node.op in ("U", "transposed", *LINES) else node.inputs:
            free = graph.nodes[i].shape in ((), (HIDDEN,)) or graph.nodes[i].op == "full"
            if not free and of[i] != wanted:
                return True
    return any(name.startswith("d_a.") and of[i] == "1" for name, i in graph.outputs)


def node_widths(graph: Graph) -> tuple[str, ...]:
    """For each node, the width it is computed at: constants, where hidden_size is, go with it."""
    widths: list[str] = []
    for node in graph.nodes:
        width = node.shape[-1] if node.shape else HIDDEN
        if node.shape == NUMBER and node.op not in _ONE_UNIT:
            of = {widths[i] for i in node.inputs if graph.nodes[i].shape == NUMBER}
            width = "1" if "1" in of else HIDDEN
        widths.append(width)
    return tuple(widths)
