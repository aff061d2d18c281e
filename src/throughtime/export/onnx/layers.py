"""A recurrent layer as nodes of ONNX, in `to_onnx` and in torch.onnx.export.

An operator of ONNX where its cell is one, else a Scan whose body is the cell's equations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from throughtime.backends.call import Call, step_count
from throughtime.backends.cpu.operands import masks_of
from throughtime.backends.cpu.unshare import call_apart
from throughtime.backends.reference import matrices, vectors
from throughtime.cell.contract import Names
from throughtime.cell.registry import find_cell
from throughtime.compiler.plan import make_plan, why_unplanned
from throughtime.errors import OptionError, TransformError
from throughtime.export.onnx.graph import OnnxGraph, Operations, onnx_package
from throughtime.export.operators import Operator, operator_of, operator_weights
from throughtime.export.program import Values
from throughtime.scan.operator import unflatten


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
    operator = operator_of(call) if inputs.operators else None
    if operator is not None:
        return _write_operator(out, call, operator, inputs, states)
    return _write_scans(out, call, inputs, states)


def _write_starts(out: OnnxGraph, call: Call, rows: str) -> list[str]:
    """Where sequences start, for every row the same."""
    names = []
    for first in call.initial_rows():
        D, _, width = first.shape
        sizes = [out.constant(np.array([n], np.int64)) for n in (D, width)]
        shape = out.add("Concat", sizes[0], rows, sizes[1], axis=0)
        names.append(str(out.add("Expand", out.constant(first[:, :1].detach().numpy()), shape)))
    return names


def _write_operator(
    out: OnnxGraph, call: Call, operator: Operator, inputs: LayerInputs, states: list[str]
) -> tuple[str, list[str]]:
    weights = (v.detach().numpy() for v in operator_weights(call, operator) if v is not None)
    W, R, B, *peepholes = map(out.constant, weights)
    names = [inputs.x, W, R, B, inputs.lengths or "", *states, *peepholes]
    attributes = _list_attributes(call, operator, "reverse" if inputs.backward else "forward")
    y, *finals = out.add(operator.op, *names, outputs=1 + operator.states, word="y", **attributes)
    if inputs.lengths is not None:
        finals = _restore_empty_rows(out, inputs.lengths, states, finals)
    return str(out.add("Transpose", y, perm=[0, 2, 1, 3])), finals


def _list_attributes(call: Call, operator: Operator, one_way: str) -> dict[str, Any]:
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
    none = out.add("Unsqueeze", none, out.constant(np.array([1], np.int64)))
    return [str(out.add("Where", none, s, v)) for s, v in zip(starts, finals, strict=True)]


def _write_scans(
    out: OnnxGraph, call: Call, inputs: LayerInputs, states: list[str]
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
        y, *last = _Scan(out, one, inputs, starts).write(backward=inputs.backward or d == 1)
        ys.append(str(out.add("Unsqueeze", y, axis[1])))
        finals.append([str(out.add("Unsqueeze", v, axis[0])) for v in last])
    y = str(out.add("Concat", *ys, axis=2))
    return y, [str(out.add("Concat", *group, axis=0)) for group in zip(*finals, strict=True)]


class _Scan:
    """One direction of a layer: products with x for all steps at once, then a Scan."""

    def __init__(self, out: OnnxGraph, call: Call, inputs: LayerInputs, starts: list[str]) -> None:
        self.out, self.call, self.inputs, self.starts = out, call, inputs, starts
        self.plan = make_plan(call.cell, masks_of(call))
        self.body = OnnxGraph(out)
        self.weights: dict[str, Values] = {n: v.numpy() for n, v in call.weights[0].items()}
        names = call.cell.state_names
        self.states = {n: self.body.name(n) for n in names}
        self.widths = call.cell.widths(call.hidden_size)

    def write(self, backward: bool) -> list[str]:
        """The names of (T, B, width) and of each last state (B, width)."""
        onnx = onnx_package()
        sources, elements, a = self._list_sources()
        valid = self._write_valid(sources, elements)
        new = self._write_step(a)
        if valid is not None:
            olds = self.states.values()
            after = [self.body.add("Where", valid, n, o) for n, o in zip(new, olds, strict=True)]
            zero = self.body.constant(np.float32(0))
            output = self.body.add("Where", valid, new[0], zero)
        else:
            after, output = [self.body.add("Identity", n) for n in new], new[0]
        output = self.body.add("Identity", output)
        value = onnx.helper.make_tensor_value_info
        states = zip(self.states.values(), self.widths, strict=True)
        ins = [value(n, 1, ["B", w]) for n, w in states] + elements
        outs = [value(n, 1, ["B", w]) for n, w in zip(after, self.widths, strict=True)]
        outs.append(value(output, 1, ["B", self.widths[0]]))
        name = self.out.name(f"{type(self.call.cell).__name__}_step")
        body = onnx.helper.make_graph(self.body.nodes, name, ins, outs, self.body.constants)
        *last, y = self.out.add(
            "Scan", *self.starts, *sources, outputs=len(after) + 1, word="y", body=body,
            num_scan_inputs=len(sources), scan_input_directions=[int(backward)] * len(sources),
            scan_output_directions=[int(backward)],
        )  # fmt: skip
        return [y, *last]

    def _list_sources(self) -> tuple[list[str], list[Any], dict[str, str]]:
        """What is scanned, the type of each element, and the names of `a`'s values in the body."""
        value = onnx_package().helper.make_tensor_value_info
        sources, elements, a = list[str](), list[Any](), dict[str, str]()
        gates, H = self.call.cell.layout.input_gates, self.call.hidden_size
        if gates:
            W = self.out.constant(np.ascontiguousarray(self.weights["weight_ih"].T))
            product = self.out.add("MatMul", self.inputs.x, W)
            if "bias_ih" in self.weights:
                bias = self.out.constant(self.weights["bias_ih"])
                product = self.out.add("Add", product, bias)
            sources.append(str(product))
            whole = self.body.name("Wx")
            elements.append(value(whole, 1, ["B", len(gates) * H]))
            parts = self.body.add(
                "Split", whole, outputs=len(gates), num_outputs=len(gates), axis=-1
            )
            a |= dict(zip(gates, [parts] if len(gates) == 1 else parts, strict=True))
        for name in self.call.cell.layout.inputs:
            width = self.call.cell.width(self.call.cell.inputs[name], H)
            sources.append(self.inputs.direct[name])
            a[name] = self.body.name(name)
            elements.append(value(a[name], 1, ["B", width]))
        return sources, elements, a

    def _write_valid(self, sources: list[str], elements: list[Any]) -> str | None:
        """Whether a row has this step, (B, 1); None where all rows have all steps.

        Adds the number of the step to the sources where there are lengths, or no other source.
        """
        if self.inputs.lengths is None and sources:
            return None
        value = onnx_package().helper.make_tensor_value_info
        zero, one = (self.out.constant(np.array(n, np.int64)) for n in (0, 1))
        steps = self.out.add("Gather", self.out.add("Shape", self.inputs.x), zero, axis=0)
        sources.append(str(self.out.add("Range", zero, steps, one)))
        name = self.body.name("step")
        elements.append(value(name, 7, []))
        if self.inputs.lengths is None:
            return None
        lengths = self.out.add("Cast", self.inputs.lengths, to=7)
        axis = self.out.constant(np.array([1], np.int64))
        return str(self.body.add("Less", name, self.out.add("Unsqueeze", lengths, axis)))

    def _write_step(self, a: dict[str, str]) -> list[str]:
        """The new states of one step."""
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
                names[i] = self.body.constant(self._mask(word))
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


State = list[Tensor]


def decompose(
    cell: str, backend: str, form: Sequence[int], keep: bool, tensors: list[Tensor | None]
) -> list[Tensor]:
    """What `scan_forward` gives, by operators of ONNX and of torch.

    torch.onnx.export asks for it where it takes operators apart, so that a model of any code
    becomes a file.

    Raises:
        TransformError: the call has packed rows or resets.
    """
    call = unflatten(find_cell(cell), form, tensors)
    for what, option in (("a PackedSequence", call.batch_sizes), ("resets", call.reset)):
        if option is not None:
            raise TransformError(
                f"torch.onnx.export has no form for a recurrent layer with {what}; call the layer "
                f"with a padded batch and lengths"
            )
    operator = None if call.record else operator_of(call)
    if operator is not None:
        return _run_operator(call, operator)
    parts = [_run_scan(call, d) for d in range(call.directions)]
    count = len(call.cell.state_names)
    finals = [torch.stack([last[k] for last, _ in parts]) for k in range(count)]
    sequences = [torch.stack([ys[k] for _, ys in parts], 2) for k in range(call.sequences)]
    return [*sequences, *finals]


def _run_operator(call: Call, operator: Operator) -> list[Tensor]:
    """The operator of ONNX, which gives y as (T, D, B, H)."""
    W, R, B, P = operator_weights(call, operator)
    states = [v.contiguous() for v in call.start()]
    lengths = None if call.lengths is None else call.lengths.to(torch.int32)
    inputs = [call.x, W, R, B, lengths, *states, *([] if P is None else [P])]
    T, D, rows, H = step_count(call), call.directions, call.rows, call.hidden_size
    y, *finals = torch.onnx.ops.symbolic_multi_out(
        operator.op, inputs, _list_attributes(call, operator, "forward"),
        dtypes=[call.x.dtype] * (1 + operator.states),
        shapes=[[T, D, rows, H], *[[D, rows, H]] * operator.states],
    )  # fmt: skip
    if call.lengths is not None:  # a row without steps stays where it started
        none = (call.lengths == 0).unsqueeze(-1)
        finals = [torch.where(none, s, v) for s, v in zip(states, finals, strict=True)]
    return [y.transpose(1, 2), *finals]


def _run_scan(call: Call, d: int) -> tuple[State, State]:
    """One direction's last states (B, width) and its sequences (T, B, width).

    Products with x are computed before, for all steps at once; what a step reads comes in one
    fixed order.
    """
    scanned = _list_scanned(call, d)
    names = list(scanned)
    shared = {n: v for n, v in call.weights[d].items() if n not in ("weight_ih", "bias_ih")}
    count, sequences = len(call.cell.state_names), call.sequences

    def combine(*values: Tensor) -> list[Tensor]:
        old, rest = list(values[:count]), values[count:]
        here = dict(zip(names, rest, strict=False))
        weights = dict(zip(shared, rest[len(names) :], strict=True))
        new = _step(call._replace(weights=(weights,)), d, old, here)
        outputs = new[:sequences]
        if "alive" in here:
            outputs = [torch.where(here["alive"], v, 0.0) for v in outputs]
            new = [torch.where(here["alive"], v, o) for v, o in zip(new, old, strict=True)]
        return [*(v.clone() for v in new), *(v.clone() for v in outputs)]

    sources = [v.flip(0) if d else v for v in scanned.values()]
    starts = [v[d].contiguous() for v in call.start()]
    scan: Callable[..., Any] = torch.ops.higher_order.scan
    results = scan(combine, starts, sources, tuple(shared.values()))
    return list(results[:count]), [v.flip(0) if d else v for v in results[count:]]


def _list_scanned(call: Call, d: int) -> dict[str, Tensor]:
    """What is scanned, (T, B, ...), by name."""
    weights, layout = call.weights[d], call.cell.layout
    scanned: dict[str, Tensor] = {}
    if layout.input_gates:
        scanned["Wx"] = linear(call.x, weights["weight_ih"], weights.get("bias_ih"))
    scanned |= {name: (call.inputs or {})[name] for name in layout.inputs}
    for k, mask in enumerate(call.zoneout or ()):
        scanned[f"kept {k}"] = mask[d]
    if call.lengths is not None or not scanned:
        steps = torch.arange(step_count(call), device=call.x.device).unsqueeze(1)
        ends = call.x.new_full((call.rows,), step_count(call), dtype=torch.int64)
        alive = steps < (ends if call.lengths is None else call.lengths)
        scanned["alive"] = alive.unsqueeze(-1)
    return scanned


def _step(call: Call, d: int, old: State, here: dict[str, Tensor]) -> State:
    """The cell's own equations at one step; `call` has the weights of this direction alone."""
    cell = call.cell
    a = {name: here[name] for name in cell.layout.inputs}
    if "Wx" in here:
        gates = here["Wx"].split(call.hidden_size, -1)
        a |= dict(zip(cell.layout.input_gates, gates, strict=True))
    mask = None if call.recurrent_mask is None else call.recurrent_mask[d : d + 1]
    one = call._replace(recurrent_mask=mask)
    s = Names("s", dict(zip(cell.state_names, old, strict=True)))
    new = list(cell.step(Names("a", a), matrices(one, 0), s, vectors(one, 0)))
    if call.zoneout is None:
        return new
    shares = [here[f"kept {k}"] for k in range(len(old))]
    return [m * o + (1 - m) * n for m, o, n in zip(shares, old, new, strict=True)]
