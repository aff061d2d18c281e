"""A graph of ONNX while it is written, and the operations of the compiler's graphs in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from throughtime.compiler.graph import BOOLEAN, Graph
from throughtime.errors import missing_extra
from throughtime.export.program import Values


def onnx_package() -> Any:
    """The package onnx.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise missing_extra("onnx", "export") from error
    return onnx


class OnnxGraph:
    """Nodes and constants of one graph.

    Args:
        outer: the graph around it, whose names it may read and must not use again.
    """

    def __init__(self, outer: OnnxGraph | None = None) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._taken: set[str] = outer._taken if outer else set()
        self._known: dict[bytes, str] = {}

    def name(self, word: str) -> str:
        """A new name."""
        free, count = word, 2
        while free in self._taken:
            free, count = f"{word}_{count}", count + 1
        self._taken.add(free)
        return free

    def constant(self, values: Any, word: str = "c") -> str:
        """A constant, the same one for equal values."""
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        key = repr((array.dtype, array.shape)).encode() + array.tobytes()
        if key not in self._known:
            name = self._known[key] = self.name(word)
            self.constants.append(onnx_package().numpy_helper.from_array(array, name))
        return self._known[key]

    def add(
        self, op: str, *inputs: str, outputs: int = 1, word: str = "t", **attributes: Any
    ) -> Any:
        """A node; returns the name of its output, or the names of several."""
        names = [self.name(word) for _ in range(outputs)]
        node = onnx_package().helper.make_node(
            op, list(inputs), names, name=self.name(f"{op}_node"), **attributes
        )
        self.nodes.append(node)
        return names[0] if outputs == 1 else names


class Operations:
    """Writes nodes of a graph.

    Args:
        out: where they go.
        graph: whose nodes are meant.
        units: the number of units for each width.
        names: of the values that are written already, by node.
        products: for each matrix it, transposed, and what is added to its product.
    """

    def __init__(
        self, out: OnnxGraph, graph: Graph, units: Mapping[str, int], names: dict[int, str],
        products: Mapping[str, tuple[Values, Values | None]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.out, self.graph, self.units = out, graph, units
        self.products = products
        self.names = dict(names)

    def value(self, index: int) -> str:
        """The name of a node's value, which is written at the first call."""
        if index not in self.names:
            self.names[index] = self._write(index)
        return self.names[index]

    def number(self, value: float) -> str:
        """A constant of one number."""
        return self.out.constant(np.float32(value))

    def _write(self, index: int) -> str:
        node = self.graph.nodes[index]
        if node.op in ("number", "full"):
            return self.number(float(node.constants[0]))  # type: ignore[arg-type]
        if node.op == "width":
            width = str(node.constants[0])
            return self.number(float(self.units.get(width) or int(width)))
        values = [self.value(i) for i in node.inputs]
        if node.op == "U":
            return self._product(values[0], *self.products[str(node.constants[0])])
        truths = [self.graph.nodes[i].op in BOOLEAN for i in node.inputs]
        if node.op == "where":
            numbers = [self._float(v, t) for v, t in zip(values[1:], truths[1:], strict=True)]
            return str(self.out.add("Where", values[0], *numbers))
        if not (node.op in BOOLEAN and all(truths)):
            values = [self._float(v, t) for v, t in zip(values, truths, strict=True)]
        if node.op in _PLAIN:
            return str(self.out.add(_PLAIN[node.op], *values))
        return _RULES[node.op](self, *values, *node.constants)

    def _product(self, v: str, matrix: Values, bias: Values | None) -> str:
        product = str(self.out.add("MatMul", v, self.out.constant(matrix)))
        return product if bias is None else self.op("Add", product, self.out.constant(bias))

    def _float(self, name: str, truth: bool) -> str:
        return str(self.out.add("Cast", name, to=1)) if truth else name

    def op(self, op: str, *inputs: str | float, **attributes: Any) -> str:
        """An operator on values and numbers."""
        names = [i if isinstance(i, str) else self.number(i) for i in inputs]
        return str(self.out.add(op, *names, **attributes))

    def _clip(self, x: str, low: Any, high: Any) -> str:
        x = x if low == -math.inf else self.op("Max", x, low)
        return x if high == math.inf else self.op("Min", x, high)

    def _softplus(self, x: str, beta: Any, threshold: Any) -> str:
        z = self.op("Mul", x, beta)
        y = self.op("Div", self.op("Softplus", z), beta)
        return self.op("Where", self.op("Greater", z, threshold), x, y)

    def _elu(self, x: str, alpha: Any, scale: Any, inner: Any) -> str:
        below = self.op("Sub", self.op("Exp", self.op("Mul", self.op("Min", x, 0.0), inner)), 1.0)
        below = self.op("Mul", below, alpha * scale)
        return self.op("Where", self.op("Greater", x, 0.0), self.op("Mul", x, scale), below)

    def _gelu(self, x: str) -> str:
        below = self.op("Add", self.op("Erf", self.op("Mul", x, math.sqrt(0.5))), 1.0)
        return self.op("Mul", self.op("Mul", x, 0.5), below)

    def _reduced(self, op: str, x: str) -> str:
        axes = self.out.constant(np.array([-1], np.int64))
        return str(self.out.add(op, x, axes, keepdims=1))


_PLAIN: Final = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "neg": "Neg", "abs": "Abs",
    "reciprocal": "Reciprocal", "sqrt": "Sqrt", "exp": "Exp", "log": "Log", "sin": "Sin",
    "cos": "Cos", "atan": "Atan", "erf": "Erf", "sign": "Sign", "sigmoid": "Sigmoid",
    "tanh": "Tanh", "relu": "Relu", "maximum": "Max", "minimum": "Min", "gt": "Greater",
    "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal", "and": "And",
    "or": "Or", "not": "Not", "detach": "Identity",
}  # fmt: skip

_RULES: Final[dict[str, Callable[..., str]]] = {
    "ne": lambda o, x, w: o.op("Not", o.op("Equal", x, w)),
    "square": lambda o, x: o.op("Mul", x, x),
    "rsqrt": lambda o, x: o.op("Reciprocal", o.op("Sqrt", x)),
    "pow": lambda o, x, e: o.op("Pow", x, e),
    "expm1": lambda o, x: o.op("Sub", o.op("Exp", x), 1.0),
    "log1p": lambda o, x: o.op("Log", o.op("Add", x, 1.0)),
    "leaky_relu": lambda o, x, slope: o.op("LeakyRelu", x, alpha=slope),
    "silu": lambda o, x: o.op("Mul", x, o.op("Sigmoid", x)),
    "logsigmoid": lambda o, x: o.op("Neg", o.op("Softplus", o.op("Neg", x))),
    "spread": lambda o, x: x,
    "elu": Operations._elu,
    "softplus": Operations._softplus,
    "gelu": Operations._gelu,
    "hardtanh": Operations._clip,
    "clamp": Operations._clip,
    "row_sum": lambda o, x: o._reduced("ReduceSum", x),
    "row_max": lambda o, x: o._reduced("ReduceMax", x),
}
