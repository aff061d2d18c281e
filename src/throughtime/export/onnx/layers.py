"""A recurrent layer as a node of ONNX: an operator where its cell is one, else a Scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from throughtime.backends.call import Call
from throughtime.backends.cpu.operands import masks_of
from throughtime.backends.cpu.unshare import call_apart
from throughtime.compiler.plan import make_plan, why_unplanned
from throughtime.errors import OptionError
from throughtime.export.onnx.graph import OnnxGraph, Operations, onnx_package
from throughtime.export.onnx.operators import Operator, operator_of, operator_weights
from throughtime.export.program import Values


class Given(NamedTuple):
    """Names of what a layer is given.

    Attributes:
        x: (T, B, I).
        rows: B, as a vector of one number.
        lengths: (B,) int32, or None.
        states: of each state (D, B, width), or None where it starts by itself.
        inputs: direct inputs, (T, B, width).
        backward: whether a single direction reads from the end.
        operators: whether a cell that is an operator becomes it.
    """

    x: str
    rows: str
    lengths: str | None
    states: list[str] | None
    inputs: Mapping[str, str]
    backward: bool = False
    operators: bool = True


def write_layer(out: OnnxGraph, call: Call, given: Given) -> tuple[str, list[str]]:
    """One layer's nodes; gives (T, B, D, width) and of each state (D, B, width)."""
    states = given.states or _starts(out, call, given.rows)
    found = operator_of(call) if given.operators else None
    if found is not None:
        return _write_operator(out, call, found, given, states)
    return _write_scans(out, call, given, states)


def _starts(out: OnnxGraph, call: Call, rows: str) -> list[str]:
    """Where sequences start, for every row the same."""
    names = []
    for first in call.initial_rows():
        D, _, width = first.shape
        sizes = [out.constant(np.array([n], np.int64)) for n in (D, width)]
        shape = out.add("Concat", sizes[0], rows, sizes[1], axis=0)
        names.append(str(out.add("Expand", out.constant(first[:, :1].detach().numpy()), shape)))
    return names


def _write_operator(
    out: OnnxGraph, call: Call, found: Operator, given: Given, states: list[str]
) -> tuple[str, list[str]]:
    W, R, B, P = (None if v is None else v.detach().numpy() for v in operator_weights(call, found))
    inputs = [given.x, out.constant(W), out.constant(R), out.constant(B), given.lengths or ""]
    inputs += states
    if P is not None:
        inputs.append(out.constant(P))
    attributes = dict(found.attributes)
    D = call.directions
    if "activations" in attributes:
        attributes["activations"] = [attributes["activations"]] * D
    single = "reverse" if given.backward else "forward"
    attributes["direction"] = single if D == 1 else "bidirectional"
    y, *finals = out.add(
        found.op, *inputs, outputs=1 + found.states, word="y", hidden_size=call.hidden_size,
        **attributes,
    )  # fmt: skip
    if given.lengths is not None:
        finals = _of_rows_without_steps(out, given.lengths, states, finals)
    return str(out.add("Transpose", y, perm=[0, 2, 1, 3])), finals


def _of_rows_without_steps(
    out: OnnxGraph, lengths: str, starts: list[str], finals: list[str]
) -> list[str]:
    """The last states; of a row of length 0 where it started, for which operators give zeros."""
    none = out.add("Equal", lengths, out.constant(np.array(0, np.int32)))
    none = out.add("Unsqueeze", none, out.constant(np.array([1], np.int64)))
    return [str(out.add("Where", none, s, v)) for s, v in zip(starts, finals, strict=True)]


def _write_scans(
    out: OnnxGraph, call: Call, given: Given, states: list[str]
) -> tuple[str, list[str]]:
    """A Scan for each direction, side by side."""
    reason = why_unplanned(call.cell)
    if reason is not None:
        raise OptionError(f"{call.cell!r} cannot be exported: {reason}")
    axis = [out.constant(np.array([k], np.int64)) for k in (0, 2)]
    ys, finals = list[str](), list[list[str]]()
    for d in range(call.directions):
        one = call_apart(call.direction(d))
        at = out.constant(np.array(d, np.int64))
        starts = [str(out.add("Gather", s, at, axis=0)) for s in states]
        y, *last = _Scan(out, one, given, starts).write(backward=given.backward or d == 1)
        ys.append(str(out.add("Unsqueeze", y, axis[1])))
        finals.append([str(out.add("Unsqueeze", v, axis[0])) for v in last])
    y = str(out.add("Concat", *ys, axis=2))
    return y, [str(out.add("Concat", *group, axis=0)) for group in zip(*finals, strict=True)]


class _Scan:
    """One direction of a layer: products with x for all steps at once, then a Scan."""

    def __init__(self, out: OnnxGraph, call: Call, given: Given, starts: list[str]) -> None:
        self.out, self.call, self.given, self.starts = out, call, given, starts
        self.plan = make_plan(call.cell, masks_of(call))
        self.body = OnnxGraph(out)
        self.weights: dict[str, Values] = {n: v.numpy() for n, v in call.weights[0].items()}
        names = call.cell.state_names
        self.states = {n: self.body.name(n) for n in names}
        self.widths = call.cell.widths(call.hidden_size)

    def write(self, backward: bool) -> list[str]:
        """The names of (T, B, width) and of each last state (B, width)."""
        onnx = onnx_package()
        sources, elements, given = self._scanned()
        valid = self._valid(sources, elements)
        new = self._step(given)
        if valid is not None:
            olds = self.states.values()
            kept = [self.body.add("Where", valid, n, o) for n, o in zip(new, olds, strict=True)]
            zero = self.body.constant(np.float32(0))
            shown = self.body.add("Where", valid, new[0], zero)
        else:
            kept, shown = [self.body.add("Identity", n) for n in new], new[0]
        shown = self.body.add("Identity", shown)
        value = onnx.helper.make_tensor_value_info
        states = zip(self.states.values(), self.widths, strict=True)
        ins = [value(n, 1, ["B", w]) for n, w in states] + elements
        outs = [value(n, 1, ["B", w]) for n, w in zip(kept, self.widths, strict=True)]
        outs.append(value(shown, 1, ["B", self.widths[0]]))
        name = self.out.name(f"{type(self.call.cell).__name__}_step")
        body = onnx.helper.make_graph(self.body.nodes, name, ins, outs, self.body.constants)
        *last, y = self.out.add(
            "Scan", *self.starts, *sources, outputs=len(kept) + 1, word="y", body=body,
            num_scan_inputs=len(sources), scan_input_directions=[int(backward)] * len(sources),
            scan_output_directions=[int(backward)],
        )  # fmt: skip
        return [y, *last]

    def _scanned(self) -> tuple[list[str], list[Any], dict[str, str]]:
        """What is walked over, what each element is, and the names of `a`'s values in the body."""
        value = onnx_package().helper.make_tensor_value_info
        sources, elements, given = list[str](), list[Any](), dict[str, str]()
        gates, H = self.call.cell.layout.input_gates, self.call.hidden_size
        if gates:
            W = self.out.constant(np.ascontiguousarray(self.weights["weight_ih"].T))
            product = self.out.add("MatMul", self.given.x, W)
            if "bias_ih" in self.weights:
                bias = self.out.constant(self.weights["bias_ih"])
                product = self.out.add("Add", product, bias)
            sources.append(str(product))
            whole = self.body.name("Wx")
            elements.append(value(whole, 1, ["B", len(gates) * H]))
            parts = self.body.add(
                "Split", whole, outputs=len(gates), num_outputs=len(gates), axis=-1
            )
            given |= dict(zip(gates, [parts] if len(gates) == 1 else parts, strict=True))
        for name in self.call.cell.layout.inputs:
            width = self.call.cell.width(self.call.cell.inputs[name], H)
            sources.append(self.given.inputs[name])
            given[name] = self.body.name(name)
            elements.append(value(given[name], 1, ["B", width]))
        return sources, elements, given

    def _valid(self, sources: list[str], elements: list[Any]) -> str | None:
        """Whether a row has this step, (B, 1); None where all have all.

        The number of the step is walked over where there are lengths, or nothing else is.
        """
        if self.given.lengths is None and sources:
            return None
        value = onnx_package().helper.make_tensor_value_info
        zero, one = (self.out.constant(np.array(n, np.int64)) for n in (0, 1))
        steps = self.out.add("Gather", self.out.add("Shape", self.given.x), zero, axis=0)
        sources.append(str(self.out.add("Range", zero, steps, one)))
        name = self.body.name("step")
        elements.append(value(name, 7, []))
        if self.given.lengths is None:
            return None
        lengths = self.out.add("Cast", self.given.lengths, to=7)
        axis = self.out.constant(np.array([1], np.int64))
        return str(self.body.add("Less", name, self.out.add("Unsqueeze", lengths, axis)))

    def _step(self, given: dict[str, str]) -> list[str]:
        """The new states of one step."""
        graph, names = self.plan.graph, dict[int, str]()
        for i, node in enumerate(graph.nodes[: graph.forward]):
            word = str(node.constants[0]) if node.constants else ""
            if node.op == "a":
                names[i] = given[word]
            elif node.op == "s":
                names[i] = self.states[word]
            elif node.op == "p":
                names[i] = self.body.constant(self.weights[word])
            elif node.op == "mask":
                names[i] = self.body.constant(self._mask(word))
        units = {
            w: int(w) if w.isdigit() else self.call.cell.width(w, self.call.hidden_size)
            for w in self.plan.widths.names
        }
        written = Operations(self.body, graph, units, names, self._products())
        found = [written.value(i) for i in self.plan.new_states]
        return [self._whole(n, w) for n, w in zip(found, self.widths, strict=True)]

    def _whole(self, name: str, width: int) -> str:
        """A state of every row, also where its equation reads no row."""
        sizes = self.body.add("Shape", next(iter(self.states.values())))
        first = self.body.constant(np.array([0], np.int64))
        rows = self.body.add("Gather", sizes, first, axis=0)
        shape = self.body.add(
            "Concat", rows, self.body.constant(np.array([width], np.int64)), axis=0
        )
        return str(self.body.add("Expand", name, shape))

    def _mask(self, name: str) -> Values:
        assert self.call.zoneout is not None
        mask = self.call.zoneout[self.call.cell.state_names.index(name)]
        return np.float32(mask.reshape(-1)[0].item()) * np.ones((), np.float32)

    def _products(self) -> dict[str, tuple[Values, Values | None]]:
        """Each matrix, turned, and its bias."""
        layout, H = self.call.cell.layout, self.call.hidden_size
        found: dict[str, tuple[Values, Values | None]] = {}
        for k, gate in enumerate(layout.recurrent_gates):
            lines = slice(k * H, (k + 1) * H)
            bias = self.weights["bias_hh"][lines] if "bias_hh" in self.weights else None
            found[gate] = np.ascontiguousarray(self.weights["weight_hh"][lines].T), bias
        for name in layout.products:
            found[name] = np.ascontiguousarray(_dense(self.weights[f"weight_{name}"]).T), None
        return found


def _dense(matrix: Values) -> Values:
    """A matrix of blocks as one that is zero beside them."""
    if matrix.ndim == 2:
        return matrix
    n, lines, columns = matrix.shape
    found = np.zeros((n * lines, n * columns), np.float32)
    for b, block in enumerate(matrix):
        found[b * lines : (b + 1) * lines, b * columns : (b + 1) * columns] = block
    return found
