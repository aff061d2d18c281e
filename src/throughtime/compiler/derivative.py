"""From the graph of a step to the graph of its derivative, by the rules and the chain rule."""

from __future__ import annotations

from typing import Any, Final

from throughtime.compiler.builder import Builder
from throughtime.compiler.graph import READ, Graph, Node, Product, Shape
from throughtime.compiler.rules import FLAT, RULES
from throughtime.compiler.symbol import Symbol
from throughtime.errors import CellError

_Part = tuple[int, int, Symbol]
"""Of a slice: from which unit to which, and the gradient by it."""

_UNASKED: Final = FLAT | {"mask"}
"""Values that nobody asks a gradient by; a number among them may meet values of any width."""


def derivative(graph: Graph) -> Graph:
    """The graph of the gradients by everything the step reads.

    Its first nodes are those of the step, under the same numbers; then come d.h, d.c, ..., the
    gradients by the new state, and what follows from them. Outputs are d_a.g, d_s.h and d_p.u;
    the products list gradient and vector of each product.

    Raises:
        CellError: if the graph has an operation without a rule.
    """
    _check_rules(graph)
    builder = Builder(graph.nodes, H=graph.H)
    gradients: dict[int, Symbol] = {}
    for state, index in graph.outputs:
        shape = graph.nodes[index].shape
        _add(gradients, index, Symbol(builder, builder.node("d", (), (state,), shape)))
    outputs: list[tuple[str, int]] = []
    products: list[Product] = []
    parts: dict[int, list[_Part]] = {}
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in parts:
            _add(gradients, index, _assembled(builder, graph.nodes[index].shape, parts[index]))
        if index not in gradients:
            continue
        node, d = graph.nodes[index], gradients[index]
        builder.line = node.line
        if node.op in READ:
            outputs.append((f"d_{node.op}.{node.constants[0]}", d.index))
        elif node.op == "U":
            products.append(Product(str(node.constants[0]), node.inputs[0], d.index))
        elif node.op == "slice":
            parts.setdefault(node.inputs[0], []).append((*node.constants, d))  # type: ignore[arg-type]
            continue
        _hand_on(builder, graph, gradients, index)
    order = _order(graph)
    outputs.sort(key=lambda output: order[output[0]])
    return builder.finish(graph.name, outputs, products[::-1], len(graph.nodes))


def _check_rules(graph: Graph) -> None:
    if graph.unsupported:
        operation, line = graph.unsupported[0]
        raise CellError(
            f"{graph.name} has no derivative here: no rule for {operation}\n  at {line}"
        )


def _order(graph: Graph) -> dict[str, int]:
    """The place of each gradient among those of what the step reads."""
    return {f"d_{n.op}.{n.constants[0]}": i for i, n in enumerate(graph.nodes) if n.op in READ}


def _hand_on(builder: Builder, graph: Graph, gradients: dict[int, Symbol], index: int) -> None:
    """Add what a node's gradient says of its inputs to theirs."""
    node, d = graph.nodes[index], gradients[index]
    for i, value in zip(node.inputs, _gradients_by_inputs(builder, node, index, d), strict=True):
        if value is not None and graph.nodes[i].op not in _UNASKED:
            _add(gradients, i, _summed_to(value, graph.nodes[i].shape))


def _assembled(builder: Builder, shape: Shape, found: list[_Part]) -> Symbol:
    """The gradient by a value from those by its slices: as few lines as they fit in, then added."""
    lines: list[list[_Part]] = []
    for part in sorted(found, key=lambda p: p[:2]):
        line = next((v for v in lines if v[-1][1] <= part[0]), None)
        if line is None:
            lines.append([part])
        else:
            line.append(part)
    total = _line(builder, shape, lines[0])
    for line in lines[1:]:
        total = total.write("add", _line(builder, shape, line))
    return _summed_to(total, shape)


def _line(builder: Builder, shape: Shape, found: list[_Part]) -> Symbol:
    """Parts of a line with zeros between and behind them."""
    inputs, ends = list[int](), [0]

    def zeros(stop: int) -> None:
        width = ("B", str(stop - ends[-1]))
        inputs.append(builder.node("full", (), (0.0, *width), width))
        ends.append(stop)

    for start, stop, value in found:
        if start > ends[-1]:
            zeros(start)
        inputs.append(value.index)
        ends.append(stop)
    end = builder.number_of(shape[-1])
    if ends[-1] < end:
        zeros(end)
    return Symbol(builder, builder.node("cat", tuple(inputs), tuple(ends), ("B", shape[-1])))


def _gradients_by_inputs(builder: Builder, node: Node, index: int, d: Symbol) -> tuple[Any, ...]:
    """The gradient by each input of a node whose own gradient is d."""
    if node.op in FLAT or not node.inputs:
        return (None,) * len(node.inputs)
    inputs = [Symbol(builder, i) for i in node.inputs]
    if node.op == "U":
        return (d.reshaped("transposed", inputs[0].symbolic_shape, node.constants),)
    return RULES[node.op](d, Symbol(builder, index), *inputs, *node.constants)


def _add(gradients: dict[int, Symbol], index: int, value: Symbol) -> None:
    gradients[index] = gradients[index].write("add", value) if index in gradients else value


def _summed_to(value: Symbol, shape: Shape) -> Symbol:
    """The gradient by an input of this shape, which was broadcast."""
    if value.symbolic_shape == shape:
        return value
    if shape and shape[-1] == "1":
        value = value.reshaped("row_sum", (*value.symbolic_shape[:-1], "1"))
    if len(shape) < 2:
        value = value.reshaped("sum_rows", value.symbolic_shape[1:])
    return value
