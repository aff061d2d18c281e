"""Walks over units as loops of C: one statement a node, one float or truth a unit.

The functions that they call are polynomials of the compiler's vector maths, for any processor. No
step takes a fused multiply-add for granted: ln 2 is taken off in two parts, the first so short that
its products with whole numbers are exact. Every function is the same path for every number, so that
a compiler may put loops over units into vectors. They stand in `data/maths.c`, and what is computed
otherwise without libm in `data/without_libm.c`; @ is the program's prefix, and POLY(EXP, r) the
polynomial in r with the compiler's coefficients EXP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from throughtime.compiler.graph import BOOLEAN, Graph
from throughtime.compiler.llvm import maths
from throughtime.errors import OptionError
from throughtime.export.folder import format_number
from throughtime.export.program import SCALE_SHIFT, SCALE_START, Place, Stage, Walk

if TYPE_CHECKING:
    from throughtime.export.c import Source

STRANDS = 16
"""Chains of a sum over units, as the compiler's vectors have them."""

AT = "\0"
"""Stands for the sign @ in comments; all else of it is the program's prefix."""

_SIGNS: Final = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">=", "lt": "<", "le": "<=",
    "eq": "==", "ne": "!=", "and": "&", "or": "|",
}  # fmt: skip
_CALLS: Final = frozenset(
    "exp expm1 sigmoid tanh silu logsigmoid log log1p erf gelu sin cos atan sqrt abs".split()
)


class Expressions:
    """Nodes of a graph in C.

    Args:
        graph: whose nodes are meant.
        units: the number of units for each width.

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
            return format_number(float(self.units.get(width) or int(width)))
        truths = node.op in BOOLEAN and all(self.is_truth(i) for i in node.inputs)
        casts = ["(float)" * (self.is_truth(i) and not truths) for i in node.inputs]
        read = [cast + name(i) for cast, i in zip(casts, node.inputs, strict=True)]
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
            return format_number(float(single))
        self.functions.add("number")
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


class Loops:
    def __init__(self, source: Source, stage: Stage) -> None:
        self.source, self.stage = source, stage
        self.expressions = Expressions(stage.graph, dict(stage.units))
        self.numbers: set[int] = set()  # nodes of one number that have a variable
        self.stored: dict[int, Place] = {}  # nodes that an earlier walk stored

    def lines(self, walk: Walk) -> list[str]:
        graph, lines = self.stage.graph, list[str]()
        for i in walk.numbers:
            if i not in self.numbers:
                lines += self._write_number(i)
                self.numbers.add(i)
        for r in walk.reductions:
            least = 0.0 if graph.nodes[r].op == "row_sum" else -math.inf
            start = self.expressions.literal(least)
            lines.append(f"float strand{r}[{STRANDS}];")
            lines.append(f"for (size_t j = 0; j < {STRANDS}; j++) {{ strand{r}[j] = {start}; }}")
        ends = [i for i, _ in (*walk.lines, *walk.stores)]
        ends += [graph.nodes[r].inputs[0] for r in walk.reductions]
        if ends:
            body = self._write_statements(ends, "k")
            for i, place in (*walk.lines, *walk.stores):
                body.append(f"{self.source.element(place, 'k')} = {self._name(i)};")
            body += [self._accumulate(r) for r in walk.reductions]
            lines.append(f"for (size_t k = 0; k < {walk.size}; k++) {{")
            lines += [f"    {line}" for line in body]
            lines.append("}")
        for r in walk.reductions:
            lines += self._join_strands(r)
            self.numbers.add(r)
        self.stored |= dict(walk.lines)
        self.source.functions |= self.expressions.functions
        return lines

    def _name(self, i: int) -> str:
        """The variable of a node; of a number, the number."""
        node = self.stage.graph.nodes[i]
        if node.op in ("number", "full"):
            text = self.expressions.literal(float(node.constants[0]))  # type: ignore[arg-type]
            return f"({text})" if text.startswith("-") else text
        return f"n{i}" if i in self.numbers else f"t{i}"

    def _write_number(self, i: int) -> list[str]:
        """The variable of a node of one number, computed inside braces where it takes others."""
        *before, last = self._write_statements([i], "0")
        last = last.replace(f" t{i} = ", f" n{i} = ", 1)
        if not before:
            return [last]
        kind = self._kind(i)
        last = last.removeprefix(f"const {kind} ")
        return [f"{kind} n{i};", "{", *(f"    {one}" for one in before), f"    {last}", "}"]

    def _write_statements(self, ends: list[int], index: str) -> list[str]:
        """What the nodes are computed with, under the lines of the cell that they come from."""
        lines, equation = list[str](), ""
        for i in self._list_needed(ends):
            node = self.stage.graph.nodes[i]
            if node.op in ("number", "full"):
                continue
            text = (
                "" if node.line is None or i in self.stage.loads else quote_comment(node.line.text)
            )
            if text and text != equation:
                lines.append(f"/* {text} */")
                equation = text
            lines.append(f"const {self._kind(i)} t{i} = {self._value(i, index)};")
        return lines

    def _kind(self, i: int) -> str:
        return "int" if self.expressions.is_truth(i) else "float"

    def _value(self, i: int, index: str) -> str:
        load = self.stored.get(i, self.stage.loads.get(i))
        if isinstance(load, Place):
            return self.source.element(load, index)
        if load is not None:
            return format_number(load)
        return self.expressions.of(i, self._name)

    def _list_needed(self, ends: list[int]) -> list[int]:
        """The nodes to compute, in order."""
        seen, pending = set[int](), [i for i in ends if i not in self.numbers]
        while pending:
            i = pending.pop()
            if i in seen:
                continue
            seen.add(i)
            if i not in self.stage.loads and i not in self.stored:
                pending += [k for k in self.stage.graph.nodes[i].inputs if k not in self.numbers]
        return sorted(seen)

    def _accumulate(self, r: int) -> str:
        """One more unit in its strand of a reduction."""
        node = self.stage.graph.nodes[r]
        value, strand = self._name(node.inputs[0]), f"strand{r}[k % {STRANDS}]"
        if node.op == "row_sum":
            return f"{strand} += {value};"
        return f"{strand} = {strand} > {value} ? {strand} : {value};"

    def _join_strands(self, r: int) -> list[str]:
        node = self.stage.graph.nodes[r]
        one, other = f"strand{r}[j]", f"strand{r}[j + half]"
        join = f"{one} += {other};"
        if node.op != "row_sum":
            join = f"{one} = {one} > {other} ? {one} : {other};"
        return [
            f"for (size_t half = {STRANDS // 2}; half > 0; half /= 2) {{",
            f"    for (size_t j = 0; j < half; j++) {{ {join} }}", "}",
            f"const float n{r} = strand{r}[0];",
        ]  # fmt: skip


def quote_comment(text: str) -> str:
    """A text that ends no comment of C."""
    for sign, other in (("*/", "* /"), ("/*", "/ *"), ("\n", " "), ("\\", "/"), ("@", AT)):
        text = text.replace(sign, other)
    return text


LIBM: Final = {"sqrt": "sqrtf", "sin": "sinf", "cos": "cosf", "pow": "powf"}
"""What libm is called for, and by which name."""


def write_functions(needed: Iterable[str], prefix: str, libm: bool) -> str:
    """The text of these functions and of all that they call, each once.

    Raises:
        OptionError: there is none without libm.
    """
    source, wanted = read_functions(libm), set(needed)
    if wanted - source.keys():
        raise OptionError(
            "powers of any exponent are libm's, so libm must be True for this model, got False"
        )
    while more := {d for n in wanted for d in re.findall(r"@(\w+)\(", source[n])} - wanted:
        wanted |= more
    text = "".join(f"\n{source[n]}\n" for n in source if n in wanted)
    return text.replace("@", f"{prefix}_")


@cache
def read_functions(libm: bool) -> dict[str, str]:
    """Name -> text, in an order in which each stands after those that it calls."""
    functions = _read_file("maths.c")
    if libm:
        return functions
    free = _read_file("without_libm.c")  # there is no power of any exponent among them
    return {n: t for n, t in functions.items() if n not in LIBM} | free


def _read_file(name: str) -> dict[str, str]:
    text = (files(__package__) / "data" / name).read_text("utf-8")
    text = re.sub(r"POLY\((\w+), (\w)\)", lambda m: _write_polynomial(m[1], m[2]), text)
    text = text.replace("SCALE_SHIFT", str(SCALE_SHIFT)).replace(
        "SCALE_START", f"{SCALE_START:#010x}"
    )
    parts = [part.strip("\n") for part in text.split("\n\n")]
    return {re.findall(r"static inline \w+ @(\w+)", part)[0]: part for part in parts}


def _write_polynomial(name: str, x: str) -> str:
    """c_0 + c_1 x + c_2 x^2 + ..., from the highest power down."""
    *rest, text = [format_number(c) for c in getattr(maths, name)[32]]
    for c in reversed(rest):
        text = f"({text} * {x} + {c})" if not c.startswith("-") else f"({text} * {x} - {c[1:]})"
    return text
