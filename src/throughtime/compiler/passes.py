"""Graphs made into graphs that are simpler to turn into code, and how wide their values are.

Recurrent dropout and zoneout become part of a step's graph, so that all else follows from it:

    recurrent dropout   U.g @ (m * v)  in the place of  U.g @ v, whatever v is
    zoneout             s_t = m s_{t-1} + (1 - m) s~_t  for each state

A step is given its masks like direct inputs, but no gradient by them is computed.

A mean, a variance, a softmax become sums (or a greatest value) over the units, pointwise operations
and single numbers a row, so that the code knows two operations over units and no more.

A step that multiplies by one matrix several times becomes one with a matrix for each product. So
each has a place of its own, including its weights and their gradient; who runs the step hands the
same weights in twice, and adds up what comes back.

Pointwise operations join values of one width, so the pointwise part of a step falls into one part
for each width, which is a loop of its own in code. A number a row, such as a direct input of width
1, is the same for all units of hidden_size. A product or a state of width 1 has one unit; where it
meets units of another width, or a step computes over units, all numbers a row are worked out
before the loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count
from typing import Any, Final, NamedTuple

from throughtime.cell.contract import Cell
from throughtime.cell.layout import Layout
from throughtime.compiler.graph import (
    LINES,
    NUMBER,
    Builder,
    Graph,
    Node,
    Shape,
    Unsupported,
)
from throughtime.compiler.symbols import Symbol
from throughtime.compiler.trace import trace, trace_at, with_products


class Masks(NamedTuple):
    """Which masks a step is given.

    Attributes:
        dropout: one that multiplies what the gates' matrices multiply.
        zoneout: one for each state.
    """

    dropout: bool = False
    zoneout: bool = False


NO_MASKS: Final = Masks()

DROPOUT: Final = "recurrent dropout"
"""The name of that mask; those of zoneout have the names of their states."""


def add_masks(step: Graph, gates: tuple[str, ...], masks: Masks) -> Graph:
    """The graph of a step with masks, whose nodes `mask` are what it is given besides the rest.

    Args:
        step: without masks.
        gates: whose matrices multiply what is masked.
        masks: which there are.
    """
    if masks == NO_MASKS:
        return step
    builder, place = Builder(H=step.H), list[int]()
    for node in step.nodes:
        builder.line = node.line
        inputs = tuple(place[i] for i in node.inputs)
        if masks.dropout and node.op == "U" and node.constants[0] in gates:
            v = Symbol(builder, inputs[0])
            inputs = ((_mask(builder, DROPOUT, v.symbolic_shape) * v).index,)
        place.append(builder.node(node.op, inputs, node.constants, node.shape))
    outputs = [(state, place[i]) for state, i in step.outputs]
    if masks.zoneout:
        outputs = [(state, _zoned(builder, state, i)) for state, i in outputs]
    return with_products(builder.finish(step.name, outputs, []))


def _zoned(builder: Builder, state: str, index: int) -> int:
    new = Symbol(builder, index)
    old = Symbol(builder, builder.node("s", (), (state,), new.symbolic_shape))
    m = _mask(builder, state, new.symbolic_shape)
    zoned: Symbol = m * old + (1 - m) * new
    return zoned.index


def _mask(builder: Builder, name: str, shape: Shape) -> Any:
    return Symbol(builder, builder.node("mask", (), (name,), shape))


_NAMES: Final = "row_sum row_mean row_scale row_max row_norm spread softmax normalise"
ROWWISE: Final = frozenset(_NAMES.split()) | LINES
"""Operations over the units of a row, as traced and derived."""

REDUCTIONS: Final = frozenset({"row_sum", "row_max"})
"""Operations over the units of a row that code has."""


def expand(step: Graph, graph: Graph) -> tuple[Graph, Graph]:
    """A step and its derivative in reductions and pointwise operations; as they are without need.

    Sums over units in a derivative alone are gradients by one number a row, summed later.
    """
    if not any(node.op in ROWWISE for node in step.nodes):
        return step, graph
    builder = Builder(H=step.H)
    written: list[int] = []
    forward = 0
    for index, node in enumerate(graph.nodes):
        if index == graph.forward:
            forward = len(builder.nodes)
        builder.line = node.line
        written.append(_write(builder, node, tuple(written[i] for i in node.inputs)))
    nodes = tuple(builder.nodes)

    def placed(one: Graph, nodes: tuple[Node, ...]) -> Graph:
        products = tuple(
            p._replace(vector=written[p.vector], result=written[p.result]) for p in one.products
        )
        outputs = tuple((name, written[i]) for name, i in one.outputs)
        return replace(one, nodes=nodes, outputs=outputs, products=products, forward=forward)

    return placed(step, nodes[:forward]), placed(graph, nodes)


def _write(builder: Builder, node: Node, inputs: tuple[int, ...]) -> int:
    rule = _RULES.get(node.op)
    if rule is None:
        return builder.node(node.op, inputs, node.constants, node.shape)
    return rule(Symbol(builder, inputs[0]), *node.constants).index


def _reduced(op: str, x: Symbol) -> Symbol:
    """Over the units of x, of which one alone is its own sum and greatest value."""
    if x.symbolic_shape[-1] == "1":
        return x
    return x.reshaped(op, (*x.symbolic_shape[:-1], "1"))


def _mean(x: Symbol) -> Symbol:
    width = x.builder.node("width", (), (x.symbolic_shape[-1],), ())
    return _reduced("row_sum", x).write("div", Symbol(x.builder, width))


def _centred(x: Symbol) -> Symbol:
    return x.write("sub", _mean(x))


def _row_scale(x: Symbol, eps: float) -> Symbol:
    """1 / sqrt(variance + eps), the variance around the mean that was summed before."""
    return _mean(_centred(x).write("square")).write("add", eps).write("rsqrt")


def _softmax(x: Symbol) -> Symbol:
    e = x.write("sub", _reduced("row_max", x)).write("exp")
    return e.write("div", _reduced("row_sum", e))


_RULES: Final[dict[str, Callable[..., Symbol]]] = {
    "row_sum": lambda x: _reduced("row_sum", x),
    "row_mean": _mean,
    "row_max": lambda x, ties: _reduced("row_max", x),
    "row_norm": lambda x: _reduced("row_sum", x.write("square")).write("sqrt"),
    "row_scale": _row_scale,
    "normalise": lambda x, eps: _centred(x).write("mul", _row_scale(x, eps)),
    "softmax": _softmax,
}


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


def find_widths(graph: Graph, states: tuple[str, ...]) -> Widths:
    """The widths of a derivative's nodes, and of states that no step reads."""
    of = find_node_widths(graph)
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
    of = find_node_widths(graph)
    for index, node in enumerate(graph.nodes):
        wanted = HIDDEN if node.op == "row_sum" else of[index]
        for i in () if node.op in ("U", "transposed", *LINES) else node.inputs:
            free = graph.nodes[i].shape in ((), (HIDDEN,)) or graph.nodes[i].op == "full"
            if not free and of[i] != wanted:
                return True
    return any(name.startswith("d_a.") and of[i] == "1" for name, i in graph.outputs)


def find_node_widths(graph: Graph) -> tuple[str, ...]:
    """For each node, the width it is computed at: constants, where hidden_size is, go with it."""
    widths: list[str] = []
    for node in graph.nodes:
        width = node.shape[-1] if node.shape else HIDDEN
        if node.shape == NUMBER and node.op not in _ONE_UNIT:
            of = {widths[i] for i in node.inputs if graph.nodes[i].shape == NUMBER}
            width = "1" if "1" in of else HIDDEN
        widths.append(width)
    return tuple(widths)


class Unshared(Cell):
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
        self.cell.layout_at(hidden_size)
        return self.layout

    def width(self, width: int | str, hidden_size: int) -> int:
        return self.cell.width(width, hidden_size)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, ...]:
        return self.cell.step(a, U, s, p)


@lru_cache(maxsize=256)
def unshare(cell: Cell, H: int | None = None) -> Cell:
    """The cell with a matrix for each product, and written for H where only that has rules; itself,
    if it has a matrix for each and is written for any size."""
    if isinstance(cell, Unshared):
        return cell
    size = size_of(cell, H)
    return Unshared(cell, size) if size is not None or _copies(cell, None) else cell


def size_of(cell: Cell, H: int | None) -> int | None:
    """The hidden size that a step must be written for; None where it is written for any, or not."""
    if not H or H == 1 or not trace(cell).unsupported:
        return None
    return None if trace_at(cell, H).unsupported else H


def find_unsupported(cell: Cell, H: int | None) -> Unsupported | None:
    """The first operation of a step without a rule, at this size; None where there is none."""
    unsupported = trace(cell).unsupported
    if not unsupported or size_of(cell, H) is not None:
        return None
    return (trace_at(cell, H).unsupported if H and H > 1 else unsupported)[0]


def trace_unshared(cell: Cell) -> Graph:
    """The graph of a cell's step, each of its products with a matrix of its own."""
    cell, size = (cell.cell, cell.size) if isinstance(cell, Unshared) else (cell, None)
    graph, names = trace_at(cell, size), _copies(cell, size)
    nodes = list(graph.nodes)
    for index, (copy, _) in names.items():
        nodes[index] = replace(nodes[index], constants=(copy,))
    return with_products(replace(graph, nodes=tuple(nodes))) if names else graph


def _copies(cell: Cell, size: int | None) -> Mapping[int, tuple[str, str]]:
    """Node of a product -> its matrix's new name and the old one, but for each one's first use."""
    taken = {*cell.gates, *cell.products, *(v.removeprefix("weight_") for v in cell.vectors)}
    used: set[str] = set()
    copies = {}
    for index, node in enumerate(trace_at(cell, size).nodes):
        if node.op == "U":
            name = str(node.constants[0])
            if name in used:
                copy = next(c for k in count(2) if (c := f"{name}_{k}") not in taken)
                taken.add(copy)
                copies[index] = copy, name
            used.add(name)
    return copies
