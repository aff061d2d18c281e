"""A recurrent layer as nodes of ONNX: an operator where its cell is one, else a Scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from throughtime.backends.call import Call
from throughtime.backends.cpu.operands import unshare_call
from throughtime.backends.cpu.schedule import masks_of
from throughtime.compiler.graph import BOOLEAN, Graph
from throughtime.compiler.plan import make_plan, why_unplanned
from throughtime.errors import OptionError
from throughtime.export.layer import read_mask
from throughtime.export.operators import Operator, find_operator, import_package, order_weights
from throughtime.export.program import Values


class OnnxGraph:
    """Nodes and constants of one graph; it may read the names of the graph around it, `outer`."""

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
            self.constants.append(import_package("onnx").numpy_helper.from_array(array, name))
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A constant vector of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node; returns the name of its output."""
        return self.add_several(op, *inputs, outputs=1, **attributes)[0]

    def multiply(self, v: str, matrix: Values, bias: Values | None) -> str:
        product = self.add("MatMul", v, self.constant(matrix))
        return product if bias is None else self.add("Add", product, self.constant(bias))

    def add_several(
        self, op: str, *inputs: str, outputs: int, word: str = "t", **attributes: Any
    ) -> list[str]:
        """A node; returns the names of its outputs."""
        names = [self.name(word) for _ in range(outputs)]
        node = import_package("onnx").helper.make_node(
            op, list(inputs), names, name=self.name(f"{op}_node"), **attributes
        )
        self.nodes.append(node)
        return names


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
            matrix, bias = self.products[str(node.constants[0])]
            return self.out.multiply(values[0], matrix, bias)
        truths = [self.graph.nodes[i].op in BOOLEAN for i in node.inputs]
        if node.op == "where":
            numbers = [self._float(v, t) for v, t in zip(values[1:], truths[1:], strict=True)]
            return self.out.add("Where", values[0], *numbers)
        if not (node.op in BOOLEAN and all(truths)):
            values = [self._float(v, t) for v, t in zip(values, truths, strict=True)]
        if node.op in _PLAIN:
            return self.out.add(_PLAIN[node.op], *values)
        return _RULES[node.op](self, *values, *node.constants)

    def _float(self, name: str, truth: bool) -> str:
        return self.out.add("Cast", name, to=1) if truth else name

    def op(self, op: str, *inputs: str | float, **attributes: Any) -> str:
        """An operator on values and numbers."""
        names = [i if isinstance(i, str) else self.number(i) for i in inputs]
        return self.out.add(op, *names, **attributes)

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
        return self.out.add(op, x, self.out.integers(-1), keepdims=1)


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


class LayerInputs(NamedTuple):
    """Names of a layer's inputs.

    Attributes:
        x: (T, B, I).
        rows: B, as a vector of one number.
        lengths: (B,) int32, or None.
        states: of each state (D, B, width), or None where it starts by itself.
        direct: direct inputs, (T, B, width).
        backward: whether a single direction reads from the end.
        operators: whether a cell that is an operator becomes it.
    """

    x: str
    rows: str
    lengths: str | None
    states: list[str] | None
    direct: Mapping[str, str]
    backward: bool = False
    operators: bool = True


def write_layer(out: OnnxGraph, call: Call, inputs: LayerInputs) -> tuple[str, list[str]]:
    """One layer's nodes; returns (T, B, D, width) and of each state (D, B, width)."""
    states = inputs.states or _write_starts(out, call, inputs.rows)
    operator = find_operator(call) if inputs.operators else None
    if operator is not None:
        return _write_operator(out, call, operator, inputs, states)
    return _write_scans(out, call, inputs, states)


def _write_starts(out: OnnxGraph, call: Call, rows: str) -> list[str]:
    """Where sequences start, for every row the same."""
    names = []
    for first in call.initial_rows():
        D, _, width = first.shape
        shape = out.add("Concat", out.integers(D), rows, out.integers(width), axis=0)
        names.append(out.add("Expand", out.constant(first[:, :1].detach().numpy()), shape))
    return names


def _write_operator(
    out: OnnxGraph, call: Call, operator: Operator, inputs: LayerInputs, states: list[str]
) -> tuple[str, list[str]]:
    weights = (v.detach().numpy() for v in order_weights(call, operator) if v is not None)
    W, R, B, *peepholes = map(out.constant, weights)
    names = [inputs.x, W, R, B, inputs.lengths or "", *states, *peepholes]
    attributes = list_attributes(call, operator, "reverse" if inputs.backward else "forward")
    count = 1 + operator.states
    y, *finals = out.add_several(operator.op, *names, outputs=count, word="y", **attributes)
    if inputs.lengths is not None:
        finals = _restore_empty_rows(out, inputs.lengths, states, finals)
    return out.add("Transpose", y, perm=[0, 2, 1, 3]), finals


def list_attributes(call: Call, operator: Operator, one_way: str) -> dict[str, Any]:
    """The attributes of an operator's node; `one_way` is the direction of a single one."""
    D, attributes = call.directions, {"hidden_size": call.hidden_size, **operator.attributes}
    if "activations" in attributes:
        attributes["activations"] = [attributes["activations"]] * D
    return {**attributes, "direction": one_way if D == 1 else "bidirectional"}


def _restore_empty_rows(
    out: OnnxGraph, lengths: str, starts: list[str], finals: list[str]
) -> list[str]:
    """The last states; of a row of length 0 where it started, for which operators give zeros."""
    none = out.add("Equal", lengths, out.constant(np.array(0, np.int32)))
    none = out.add("Unsqueeze", none, out.integers(1))
    return [out.add("Where", none, s, v) for s, v in zip(starts, finals, strict=True)]


def _write_scans(
    out: OnnxGraph, call: Call, inputs: LayerInputs, states: list[str]
) -> tuple[str, list[str]]:
    """A Scan for each direction, side by side."""
    reason = why_unplanned(call.cell)
    if reason is not None:
        raise OptionError(f"{call.cell!r} cannot be exported: {reason}")
    axis = [out.integers(k) for k in (0, 2)]
    ys, finals = list[str](), list[list[str]]()
    for d in range(call.directions):
        one = unshare_call(call.direction(d))
        at = out.constant(np.array(d, np.int64))
        starts = [out.add("Gather", s, at, axis=0) for s in states]
        y, *last = _Scan(out, one, inputs, starts).write(backward=inputs.backward or d == 1)
        ys.append(out.add("Unsqueeze", y, axis[1]))
        finals.append([out.add("Unsqueeze", v, axis[0]) for v in last])
    y = out.add("Concat", *ys, axis=2)
    return y, [out.add("Concat", *group, axis=0) for group in zip(*finals, strict=True)]


class _Scan:
    """One direction of a layer: products with x for all steps at once, then a Scan."""

    def __init__(self, out: OnnxGraph, call: Call, inputs: LayerInputs, starts: list[str]) -> None:
        self.out, self.call, self.inputs, self.starts = out, call, inputs, starts
        self.plan = make_plan(call.cell, masks_of(call))
        self.body = OnnxGraph(out)
        self.value = import_package("onnx").helper.make_tensor_value_info
        self.weights: dict[str, Values] = {n: v.numpy() for n, v in call.weights[0].items()}
        self.states = {n: self.body.name(n) for n in call.cell.state_names}
        self.widths = call.cell.widths(call.hidden_size)

    def write(self, backward: bool) -> list[str]:
        """The names of (T, B, width) and of each last state (B, width)."""
        sources, elements, a = self._list_sources()
        valid = self._write_valid(sources, elements)
        new = self._write_step(a)
        if valid is not None:
            olds = self.states.values()
            after = [self.body.add("Where", valid, n, o) for n, o in zip(new, olds, strict=True)]
            output = self.body.add("Where", valid, new[0], self.body.constant(np.float32(0)))
        else:
            after, output = [self.body.add("Identity", n) for n in new], new[0]
        output = self.body.add("Identity", output)
        states = zip(self.states.values(), self.widths, strict=True)
        ins = [self.value(n, 1, ["B", w]) for n, w in states] + elements
        outs = [self.value(n, 1, ["B", w]) for n, w in zip(after, self.widths, strict=True)]
        outs.append(self.value(output, 1, ["B", self.widths[0]]))
        name = self.out.name(f"{type(self.call.cell).__name__}_step")
        body = import_package("onnx").helper.make_graph(
            self.body.nodes, name, ins, outs, self.body.constants
        )
        *last, y = self.out.add_several(
            "Scan", *self.starts, *sources, outputs=len(after) + 1, word="y", body=body,
            num_scan_inputs=len(sources), scan_input_directions=[int(backward)] * len(sources),
            scan_output_directions=[int(backward)],
        )  # fmt: skip
        return [y, *last]

    def _list_sources(self) -> tuple[list[str], list[Any], dict[str, str]]:
        """What is scanned, the type of each element, and the names of `a`'s values in the body."""
        sources, elements, a = list[str](), list[Any](), dict[str, str]()
        gates, H = self.call.cell.layout.input_gates, self.call.hidden_size
        if gates:
            W = np.ascontiguousarray(self.weights["weight_ih"].T)
            sources.append(self.out.multiply(self.inputs.x, W, self.weights.get("bias_ih")))
            whole = self.body.name("Wx")
            elements.append(self.value(whole, 1, ["B", len(gates) * H]))
            count = len(gates)
            parts = self.body.add_several("Split", whole, outputs=count, num_outputs=count, axis=-1)
            a |= dict(zip(gates, parts, strict=True))
        for name in self.call.cell.layout.inputs:
            width = self.call.cell.width(self.call.cell.inputs[name], H)
            sources.append(self.inputs.direct[name])
            a[name] = self.body.name(name)
            elements.append(self.value(a[name], 1, ["B", width]))
        return sources, elements, a

    def _write_valid(self, sources: list[str], elements: list[Any]) -> str | None:
        """Whether a row has this step, (B, 1); None where all rows have all steps.

        Adds the number of the step to the sources where there are lengths, or no other source.
        """
        if self.inputs.lengths is None and sources:
            return None
        zero, one = (self.out.constant(np.array(n, np.int64)) for n in (0, 1))
        steps = self.out.add("Gather", self.out.add("Shape", self.inputs.x), zero, axis=0)
        sources.append(self.out.add("Range", zero, steps, one))
        name = self.body.name("step")
        elements.append(self.value(name, 7, []))
        if self.inputs.lengths is None:
            return None
        lengths = self.out.add("Cast", self.inputs.lengths, to=7)
        axis = self.out.integers(1)
        return self.body.add("Less", name, self.out.add("Unsqueeze", lengths, axis))

    def _write_step(self, a: dict[str, str]) -> list[str]:
        graph, names = self.plan.graph, dict[int, str]()
        for i, node in enumerate(graph.nodes[: graph.forward]):
            word = str(node.constants[0]) if node.constants else ""
            if node.op == "a":
                names[i] = a[word]
            elif node.op == "s":
                names[i] = self.states[word]
            elif node.op == "p":
                names[i] = self.body.constant(self.weights[word])
            elif node.op == "mask":
                names[i] = self.body.constant(np.float32(read_mask(self.call, word)))
        units = {
            w: int(w) if w.isdigit() else self.call.cell.width(w, self.call.hidden_size)
            for w in self.plan.widths.names
        }
        operations = Operations(self.body, graph, units, names, self._list_products())
        new = [operations.value(i) for i in self.plan.new_states]
        return [self._expand(n, w) for n, w in zip(new, self.widths, strict=True)]

    def _expand(self, name: str, width: int) -> str:
        """A state of every row, also where its equation reads no row."""
        sizes = self.body.add("Shape", next(iter(self.states.values())))
        rows = self.body.add("Gather", sizes, self.body.integers(0), axis=0)
        shape = self.body.add("Concat", rows, self.body.integers(width), axis=0)
        return self.body.add("Expand", name, shape)

    def _list_products(self) -> dict[str, tuple[Values, Values | None]]:
        """Each matrix, transposed, and its bias."""
        layout, H = self.call.cell.layout, self.call.hidden_size
        products: dict[str, tuple[Values, Values | None]] = {}
        for k, gate in enumerate(layout.recurrent_gates):
            lines = slice(k * H, (k + 1) * H)
            bias = self.weights["bias_hh"][lines] if "bias_hh" in self.weights else None
            products[gate] = np.ascontiguousarray(self.weights["weight_hh"][lines].T), bias
        for name in layout.products:
            matrix = torch.from_numpy(self.weights[f"weight_{name}"])
            whole = matrix if matrix.dim() == 2 else torch.block_diag(*matrix)
            products[name] = whole.T.contiguous().numpy(), None
        return products
