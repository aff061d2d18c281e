"""Cells that normalise over the units of a row: their graphs in sums over units, and what is left.

A mean, a variance, a softmax become sums (or a greatest value) over the units, pointwise operations
and single numbers a row, so that the code knows two operations over units and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from throughtime.compiler.graph import LINES, Builder, Graph, Node
from throughtime.compiler.symbols import Symbol

_NAMES: Final = "row_sum row_mean row_scale row_max row_norm spread softmax normalise"
ROWWISE: Final = frozenset(_NAMES.split()) | LINES
"""Operations over the units of a row, as traced and derived."""

REDUCTIONS: Final = frozenset({"row_sum", "row_max"})
"""Operations over the units of a row that code has."""


def expanded(step: Graph, graph: Graph) -> tuple[Graph, Graph]:
    """A step and its derivative in reductions and pointwise operations; as they are without need.

    Sums over units in a derivative alone are gradients by one number a row, summed later.

    Args:
        step: a graph.
        graph: of its derivative.
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
        written.append(_written(builder, node, tuple(written[i] for i in node.inputs)))
    nodes = tuple(builder.nodes)

    def placed(one: Graph, nodes: tuple[Node, ...]) -> Graph:
        products = tuple(
            p._replace(vector=written[p.vector], result=written[p.result]) for p in one.products
        )
        outputs = tuple((name, written[i]) for name, i in one.outputs)
        return replace(one, nodes=nodes, outputs=outputs, products=products, forward=forward)

    return placed(step, nodes[:forward]), placed(graph, nodes)


def _written(builder: Builder, node: Node, inputs: tuple[int, ...]) -> int:
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


def _row_norm(x: Symbol) -> Symbol:
    return _reduced("row_sum", x.write("square")).write("sqrt")


def _normalise(x: Symbol, eps: float) -> Symbol:
    return _centred(x).write("mul", _row_scale(x, eps))


def _softmax(x: Symbol) -> Symbol:
    e = x.write("sub", _reduced("row_max", x)).write("exp")
    return e.write("div", _reduced("row_sum", e))


_RULES: Final[dict[str, Callable[..., Symbol]]] = {
    "row_sum": lambda x: _reduced("row_sum", x),
    "row_mean": _mean,
    "row_max": lambda x, ties: _reduced("row_max", x),
    "row_norm": _row_norm,
    "row_scale": _row_scale,
    "normalise": _normalise,
    "softmax": _softmax,
}
