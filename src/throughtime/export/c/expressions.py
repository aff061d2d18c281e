"""Nodes of a graph as C: one statement a node, one float or truth a unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from throughtime.compiler.graph import BOOLEAN, Graph
from throughtime.export.c.maths import number

_SIGNS: Final = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">=", "lt": "<", "le": "<=",
    "eq": "==", "ne": "!=", "and": "&", "or": "|",
}  # fmt: skip
_CALLS: Final = frozenset(
    "exp expm1 sigmoid tanh silu logsigmoid log log1p erf gelu sin cos atan sqrt abs".split()
)


class Expressions:
    """What nodes of a graph are in C.

    Args:
        graph: whose nodes are meant.
        units: the number behind each width.

    Attributes:
        functions: names of the functions that were called.
    """

    def __init__(self, graph: Graph, units: dict[str, int]) -> None:
        self.graph, self.units = graph, units
        self.functions: set[str] = set()

    def is_truth(self, index: int) -> bool:
        """Whether the node is true or false."""
        return self.graph.nodes[index].op in BOOLEAN

    def of(self, index: int, name: Callable[[int], str]) -> str:
        """The expression of a node.

        Args:
            index: of the node.
            name: of the variables that hold the nodes it reads.
        """
        node = self.graph.nodes[index]
        if node.op in ("number", "full"):
            return self.literal(float(node.constants[0]))  # type: ignore[arg-type]
        if node.op == "width":
            width = str(node.constants[0])
            return number(float(self.units.get(width) or int(width)))
        truths = node.op in BOOLEAN and all(self.is_truth(i) for i in node.inputs)
        read = [
            f"(float){name(i)}" if self.is_truth(i) and not truths else name(i) for i in node.inputs
        ]
        if node.op == "where":
            return self._call("pick", name(node.inputs[0]), *read[1:])
        if node.op in _SIGNS:
            return f" {_SIGNS[node.op]} ".join(read)
        if node.op in _CALLS:
            return self._call(node.op, *read)
        return _WRITTEN[node.op](self, *read, *node.constants)

    def literal(self, value: float) -> str:
        """A number; infinities and NaN by their bits."""
        with np.errstate(over="ignore"):
            single = np.float32(value)
        if math.isfinite(single):
            return number(float(single))
        self.functions.add("bits")
        return f"@number(0x{int(single.view(np.uint32)):08x}u)"

    def _call(self, name: str, *arguments: str) -> str:
        self.functions.add(name)
        return f"@{name}({', '.join(arguments)})"

    def _clamp(self, x: str, low: Any, high: Any) -> str:
        if math.isnan(low) or math.isnan(high):
            return self.literal(math.nan)
        least, most = self.literal(low), self.literal(high)
        above = x if low == -math.inf else self._call("pick", f"{x} < {least}", least, x)
        if high == math.inf:
            return above
        over = f"{x} > {most}" if low <= high else "1"
        return self._call("pick", over, most, above)

    def _softplus(self, x: str, beta: Any, threshold: Any) -> str:
        return self._call("softplus", x, self.literal(beta), self.literal(threshold))

    def _elu(self, x: str, alpha: Any, scale: Any, inner: Any) -> str:
        numbers = (self.literal(alpha * scale), self.literal(scale), self.literal(inner))
        return self._call("elu", x, *numbers)

    def _power(self, x: str, e: Any) -> str:
        if e == 0:
            return "1.0f"
        if abs(e) == 0.5:
            root = self._call("sqrt", x)
            return root if e > 0 else f"1.0f / {root}"
        if e in range(1, 7):
            return " * ".join([x] * int(e))
        if e in (-1, -2, -3):
            return f"1.0f / ({' * '.join([x] * int(-e))})"
        return self._call("pow", x, self.literal(e))


_WRITTEN: Final[dict[str, Callable[..., str]]] = {
    "neg": lambda e, x: f"-{x}",
    "not": lambda e, x: f"!{x}",
    "reciprocal": lambda e, x: f"1.0f / {x}",
    "square": lambda e, x: f"{x} * {x}",
    "rsqrt": lambda e, x: f"1.0f / {e._call('sqrt', x)}",
    "sign": lambda e, x: f"(float)(({x} > 0.0f) - ({x} < 0.0f))",
    "detach": lambda e, x: x,
    "row_sum": lambda e, x: x,
    "spread": lambda e, x: x,
    "relu": lambda e, x: e._call("pick", f"{x} < 0.0f", "0.0f", x),
    "leaky_relu": lambda e, x, slope: e._call(
        "pick", f"{x} > 0.0f", x, f"{x} * {e.literal(slope)}"
    ),
    "hardtanh": Expressions._clamp,
    "clamp": Expressions._clamp,
    "maximum": lambda e, x, w: e._call("pick", f"({x} > {w}) | ({x} != {x})", x, w),
    "minimum": lambda e, x, w: e._call("pick", f"({x} < {w}) | ({x} != {x})", x, w),
    "softplus": Expressions._softplus,
    "elu": Expressions._elu,
    "pow": Expressions._power,
}
