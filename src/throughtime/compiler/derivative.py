"""From the graph of a step to that of its derivative: one rule for each operation.

d is the gradient of the loss by the result y; a rule gives the gradients by the inputs. For NaN
autograd has two answers in hardtanh and elu, one in its vector code and one in the rest of a row
that fills no vector; these are the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.graph import BOOLEAN, READ, Builder, Graph, Node, Product, Shape
from throughtime.compiler.symbols import Symbol
from throughtime.errors import CellError

Rule = Callable[..., tuple[Any, ...]]


def _op(name: str) -> Callable[..., Any]:
    """The operation of this name on a value and others."""
    return lambda x, *others: x.write(name, *others)


exp, log, sigmoid, erf, sign = map(_op, ("exp", "log", "sigmoid", "erf", "sign"))
square, where = _op("square"), _op("where")


def _power(x: Symbol, e: float) -> Any:
    return 1 if e == 0 else x if e == 1 else x.write("pow", constants=(e,))


def _mean(x: Symbol) -> Symbol:
    return x.reshaped("row_mean", (*x.symbolic_shape[:-1], "1"))


def _sum(x: Symbol) -> Symbol:
    return x.reshaped("row_sum", (*x.symbolic_shape[:-1], "1"))


def _spread(d: Symbol, x: Symbol) -> Symbol:
    """One number a row, for every unit of x."""
    return d.reshaped("spread", x.symbolic_shape)


def _row_scale(x: Symbol, eps: float) -> Symbol:
    """1 / sqrt(variance + eps) of each row."""
    return x.reshaped("row_scale", (*x.symbolic_shape[:-1], "1"), (eps,))


def _maximum(d: Any, y: Any, x: Any, w: Any) -> tuple[Any, ...]:
    half = where(x == w, d / 2, d)
    return where(x < w, 0, half), where(x > w, 0, half)


def _minimum(d: Any, y: Any, x: Any, w: Any) -> tuple[Any, ...]:
    half = where(x == w, d / 2, d)
    return where(x > w, 0, half), where(x < w, 0, half)


def _elu(d: Any, y: Any, x: Any, alpha: float, scale: float, inner: float) -> tuple[Any, ...]:
    return (where(x > 0, d * scale, d * inner * alpha * scale * exp(x * inner)),)


def _softplus(d: Any, y: Any, x: Any, beta: float, threshold: float) -> tuple[Any, ...]:
    z = exp(x * beta)
    return (where(x * beta > threshold, d, d * z / (z + 1)),)


def _silu(d: Any, y: Any, x: Any) -> tuple[Any, ...]:
    s = sigmoid(x)
    return (d * s * (1 + x * (1 - s)),)


def _gelu(d: Any, y: Any, x: Any) -> tuple[Any, ...]:
    below = (1 + erf(x * math.sqrt(0.5))) * 0.5
    density = exp(square(x) * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (d * (below + x * density),)


def _cat(d: Any, y: Any, *inputs: Any) -> tuple[Any, ...]:
    """Each part's own units of d; after the inputs stand where they begin, and the end."""
    count = len(inputs) // 2  # there is one end more than there are parts
    values, ends = inputs[:count], inputs[count:]
    return tuple(
        d.reshaped("slice", ("B", v.symbolic_shape[-1]), (start, stop))
        for v, start, stop in zip(values, ends, ends[1:], strict=False)
    )


def _row_max(d: Any, y: Any, x: Any, ties: str) -> tuple[Any, ...]:
    """To the greatest, all of them alike or the first alone."""
    equal = where(x == y, 1, 0)
    if ties == "first":
        return (where((equal.write("cumsum") == 1) & (x == y), _spread(d, x), 0),)
    return (equal * _spread(d / _sum(equal), x),)


RULES: Final[dict[str, Rule]] = {
    "add": lambda d, y, x, w: (d, d),
    "sub": lambda d, y, x, w: (d, -d),
    "mul": lambda d, y, x, w: (d * w, d * x),
    "div": lambda d, y, x, w: (d / w, -d * ((x / w) / w)),
    "neg": lambda d, y, x: (-d,),
    "reciprocal": lambda d, y, x: (-d * (y * y),),
    "square": lambda d, y, x: (d * (2 * x),),
    "pow": lambda d, y, x, e: (d * (e * _power(x, e - 1)),) if e else (None,),
    "sqrt": lambda d, y, x: (d / (2 * y),),
    "rsqrt": lambda d, y, x: (-0.5 * d * (y * y * y),),
    "exp": lambda d, y, x: (d * y,),
    "expm1": lambda d, y, x: (d * (y + 1),),
    "log": lambda d, y, x: (d / x,),
    "log1p": lambda d, y, x: (d / (x + 1),),
    "sin": lambda d, y, x: (d * x.cos(),),
    "cos": lambda d, y, x: (d * -x.sin(),),
    "atan": lambda d, y, x: (d / (x * x + 1),),
    "erf": lambda d, y, x: (2 / math.sqrt(math.pi) * exp(-square(x)) * d,),
    "abs": lambda d, y, x: (d * sign(x),),
    "sigmoid": lambda d, y, x: (d * (1 - y) * y,),
    "tanh": lambda d, y, x: (d * (1 - y * y),),
    "relu": lambda d, y, x: (where(y <= 0, 0, d),),
    "leaky_relu": lambda d, y, x, slope: (where(x > 0, d, d * slope),),
    "elu": _elu,
    "softplus": _softplus,
    "logsigmoid": lambda d, y, x: (d * sigmoid(-x),),
    "silu": _silu,
    "gelu": _gelu,
    "hardtanh": lambda d, y, x, low, high: (where((x > low) & (x < high), d, 0),),
    "clamp": lambda d, y, x, low, high: (where((x >= low) & (x <= high), d, 0),),
    "maximum": _maximum,
    "minimum": _minimum,
    "where": lambda d, y, c, x, w: (None, where(c, d, 0), where(c, 0, d)),
    "row_sum": lambda d, y, x: (_spread(d, x),),
    "row_mean": lambda d, y, x: (_spread(d / x.shape[-1], x),),
    "softmax": lambda d, y, x: (y * (d - _sum(d * y)),),
    "normalise": lambda d, y, x, eps: (_row_scale(x, eps) * (d - _mean(d) - y * _mean(d * y)),),
    "row_max": _row_max,
    "row_norm": lambda d, y, x: (_spread(d, x) * where(y == 0, 0, x / y),),
    "cat": _cat,
    "cumsum": lambda d, y, x: (d.write("cumsum_back"),),
}

FLAT: Final = BOOLEAN | {"sign", "detach", "full", "number", "width", "epsilon"}
"""Operations through which no gradient passes."""


_Part = tuple[int, int, Symbol]
"""Of a slice: from which unit to which, and the gradient by it."""

_UNASKED: Final = FLAT | {"mask"}
"""Values that need no gradient; a number among them may meet values of any width."""


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
    nodes = enumerate(graph.nodes)
    order = {f"d_{n.op}.{n.constants[0]}": i for i, n in nodes if n.op in READ}
    outputs.sort(key=lambda output: order[output[0]])
    return builder.finish(graph.name, outputs, products[::-1], len(graph.nodes))


def _check_rules(graph: Graph) -> None:
    if graph.unsupported:
        operation, line = graph.unsupported[0]
        raise CellError(
            f"{graph.name} has no derivative here: no rule for {operation}\n  at {line}"
        )


def _hand_on(builder: Builder, graph: Graph, gradients: dict[int, Symbol], index: int) -> None:
    """Add what a node's gradient says of its inputs to theirs."""
    node, d = graph.nodes[index], gradients[index]
    for i, value in zip(node.inputs, _gradients_by_inputs(builder, node, index, d), strict=True):
        if value is not None and graph.nodes[i].op not in _UNASKED:
            _add(gradients, i, _summed_to(value, graph.nodes[i].shape))


def _assembled(builder: Builder, shape: Shape, slices: list[_Part]) -> Symbol:
    """The gradient by a value from those by its slices: as few lines as they fit in, then added."""
    lines: list[list[_Part]] = []
    for part in sorted(slices, key=lambda p: p[:2]):
        line = next((v for v in lines if v[-1][1] <= part[0]), None)
        if line is None:
            lines.append([part])
        else:
            line.append(part)
    total = _line(builder, shape, lines[0])
    for line in lines[1:]:
        total = total.write("add", _line(builder, shape, line))
    return _summed_to(total, shape)


def _line(builder: Builder, shape: Shape, slices: list[_Part]) -> Symbol:
    """Parts of a line with zeros between and after them."""
    inputs, ends = list[int](), [0]

    def zeros(stop: int) -> None:
        width = ("B", str(stop - ends[-1]))
        inputs.append(builder.node("full", (), (0.0, *width), width))
        ends.append(stop)

    for start, stop, value in slices:
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
