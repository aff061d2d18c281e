"""A model over whole sequences as one file of ONNX: to_onnx, and for torch.onnx.export."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from throughtime.backends.call import Call, sequence_count, step_count
from throughtime.backends.reference import matrices, vectors
from throughtime.cell import find_cell
from throughtime.cell.contract import Names
from throughtime.compiler.passes import HIDDEN
from throughtime.environment import __version__
from throughtime.errors import OptionError, TransformError
from throughtime.export.layer import check_each_step, make_norm_function, trace_function
from throughtime.export.onnx.layers import (
    LayerInputs,
    OnnxGraph,
    Operations,
    list_attributes,
    write_layer,
)
from throughtime.export.operators import (
    Operator,
    Reversed,
    find_operator,
    import_package,
    order_weights,
)
from throughtime.export.pieces import (
    Piece,
    check_stack,
    copy_model,
    describe_part,
    find_input_width,
    list_pieces,
)
from throughtime.layers.layer import Passage
from throughtime.layers.options import Gate
from throughtime.scan.operator import unflatten

_LEAST_OPSET: Final = 18


def to_onnx(
    model: nn.Module, file: str | os.PathLike[str], *, opset: int = 22, lengths: bool = False,
    states: bool = False, operators: bool = True,
) -> Path:  # fmt: skip
    """Write a model as ONNX that takes whole sequences, of any number of steps and rows.

    Its input is `x` (T, B, I), or (B, T, I) where the model is batch_first, and its output `y`; of
    a cell with direct inputs these are inputs of their own, by name.

    Args:
        model: a plain stack, as of `to_c`; layers may have two directions.
        file: where it goes.
        opset: of ONNX's operators, at least 18.
        lengths: whether it takes `lengths` (B,), int32: outputs after a row's end are zero.
        states: whether it takes and gives the states of every layer, (D, B, width), named
            `h_0`, `c_0` and so on, and `h_0_last` after the sequence.
        operators: whether a cell that is an operator of ONNX becomes it; False writes every layer
            as its equations, for runtimes that leave out what an operator has (OpenVINO, say, the
            peepholes).

    Raises:
        OptionError: the model or an option cannot be taken; says why.
        MissingExtra: onnx is not installed.
        OSError: the file cannot be written.
    """
    onnx = import_package("onnx")
    if isinstance(opset, bool) or not isinstance(opset, int) or opset < _LEAST_OPSET:
        raise OptionError(f"opset must be a whole number of at least {_LEAST_OPSET}, got {opset!r}")
    pieces = list_pieces(copy_model(model))
    check_stack(pieces)
    graph = _Model(pieces, lengths, states, operators).write()
    whole = onnx.helper.make_model(
        graph, producer_name="throughtime", producer_version=__version__, ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )  # fmt: skip
    onnx.checker.check_model(whole, full_check=True)
    path = Path(file)
    path.write_bytes(whole.SerializeToString(deterministic=True))
    return path


class _Model:
    """A model's graph while it is written."""

    def __init__(self, pieces: list[Piece], lengths: bool, states: bool, operators: bool) -> None:
        self.pieces, self.states, self.operators = pieces, states, operators
        self.out, self.ins, self.outs = OnnxGraph(), list[Any](), list[Any]()
        self.value = import_package("onnx").helper.make_tensor_value_info
        for word in ("x", "y", "lengths"):
            self.out.name(word)
        layers: list[Any] = [_layer_of(p.module) for p in pieces if _layer_of(p.module)]
        self.batch_first = bool(layers) and layers[0].batch_first
        self.lengths = "lengths" if lengths else None
        self.inputs: dict[str, str] = {}
        self._count = 0

    def write(self) -> Any:
        at, width = self._write_input()
        for piece in self.pieces:
            module = piece.module
            if isinstance(module, Passage | Reversed):
                at, width = self._write_recurrent(at, module)
            else:
                at, width = self._write_part(at, width, module)
        if self.batch_first:
            at = self.out.add("Transpose", at, perm=[1, 0, 2])
        node = import_package("onnx").helper.make_node("Identity", [at], ["y"], name="leave")
        self.out.nodes.append(node)
        order = ["B", "T"] if self.batch_first else ["T", "B"]
        self.outs.insert(0, self.value("y", 1, [*order, width]))
        if self.lengths:
            self.ins.append(self.value("lengths", 6, ["B"]))
        make = import_package("onnx").helper.make_graph
        return make(self.out.nodes, "throughtime", self.ins, self.outs, self.out.constants)

    def _write_input(self) -> tuple[str, int]:
        """The input, time-major, and its width."""
        first: Any = _layer_of(self.pieces[0].module) or self.pieces[0].module
        order = ["B", "T"] if self.batch_first else ["T", "B"]
        at, perm, width = "x", [1, 0, 2], 1
        if isinstance(first, nn.Embedding):
            self.ins.append(self.value("x", 7, order))
            perm = [1, 0]
        else:
            width = find_input_width(Piece(self.pieces[0].path, first))
            self.ins.append(self.value("x", 1, [*order, width]))
        if isinstance(first, Passage):
            self._write_direct_inputs(first, order)
        if self.batch_first:
            at = self.out.add("Transpose", at, perm=perm)
        self.rows = self.out.add("Gather", self.out.add("Shape", at), self.out.integers(1), axis=0)
        return at, width

    def _write_direct_inputs(self, first: Passage, order: list[str]) -> None:
        """Direct inputs of the first layer, by name."""
        for name in first.cell.layout.inputs:
            width = first.cell.width(first.cell.inputs[name], first.hidden_sizes[0])
            word = self.out.name(name)
            self.ins.append(self.value(word, 1, [*order, width]))
            self.inputs[name] = word
            if self.batch_first:
                self.inputs[name] = self.out.add("Transpose", word, perm=[1, 0, 2])

    def _write_recurrent(self, at: str, module: Any) -> tuple[str, int]:
        layer: Any = _layer_of(module)
        if set(layer.dilations) != {1}:
            raise OptionError("a dilated layer has no form in ONNX here; use dilation=1")
        for i in range(len(layer.widths)):
            call = layer._example(i)
            states = self._write_states(call)
            backward = layer is not module
            inputs = LayerInputs(
                at, self.rows, self.lengths, states, self.inputs, backward, self.operators
            )
            y, last = write_layer(self.out, call, inputs)
            merged = _merge(self.out, y, layer.options.merge, call.directions)
            if i and layer.options.residual:
                merged = self.out.add("Add", merged, at)
            at = merged
            self._write_last_states(call, last)
            self._count += 1
        return at, layer.output_size

    def _write_states(self, call: Any) -> list[str] | None:
        """The names of a layer's states as inputs; None where the graph takes none."""
        if not self.states:
            return None
        names = []
        widths = call.cell.widths(call.hidden_size)
        for name, width in zip(call.cell.state_names, widths, strict=True):
            names.append(self.out.name(f"{name}_{self._count}"))
            self.ins.append(self.value(names[-1], 1, [call.directions, "B", width]))
        return names

    def _write_last_states(self, call: Any, last: list[str]) -> None:
        if not self.states:
            return
        widths = call.cell.widths(call.hidden_size)
        for name, width, v in zip(call.cell.state_names, widths, last, strict=True):
            word = self.out.name(f"{name}_{self._count}_last")
            make = import_package("onnx").helper.make_node
            self.out.nodes.append(make("Identity", [v], [word], name=self.out.name("give")))
            self.outs.append(self.value(word, 1, [call.directions, "B", width]))

    def _write_part(self, at: str, width: int, part: Any) -> tuple[str, int]:
        """A part that looks at each step alone."""
        if isinstance(part, nn.Linear):
            matrix = np.ascontiguousarray(part.weight.numpy().T)
            bias = None if part.bias is None else part.bias.numpy()
            return self.out.multiply(at, matrix, bias), part.out_features
        if isinstance(part, nn.Embedding):
            table = self.out.constant(part.weight.numpy())
            return self.out.add("Gather", table, at, axis=0), part.embedding_dim
        if isinstance(part, Gate):
            z, inner = at, width
            for piece in list_pieces(part.network):
                z, inner = self._write_part(z, inner, piece.module)
            return self.out.add("Mul", at, self.out.add("Sigmoid", z)), width
        function, vectors = _function_of(part)
        try:
            if not vectors:
                check_each_step(function, width)
            graph = trace_function(function, ("x",), tuple(vectors))
        except OptionError as error:
            raise OptionError(f"{describe_part(part)} cannot be exported: {error}") from error
        names = {
            i: at if node.op == "a" else self.out.constant(vectors[str(node.constants[0])])
            for i, node in enumerate(graph.nodes)
            if node.op in ("a", "p")
        }
        operations = Operations(self.out, graph, {HIDDEN: width}, names)
        return operations.value(graph.outputs[0][1]), width


def _layer_of(module: Any) -> Any:
    """The recurrent layer that a piece is, or runs backward; None for another."""
    if isinstance(module, Reversed):
        return module.layer
    return module if isinstance(module, Passage) else None


def _function_of(part: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A part as a function of x and of vectors."""
    if isinstance(part, nn.LayerNorm | nn.RMSNorm):
        return make_norm_function(part)
    return part.forward if isinstance(part, nn.Module) else part, {}


def _merge(out: OnnxGraph, y: str, merge: Any, directions: int) -> str:
    """(T, B, D, width) to (T, B, width)."""
    if callable(merge):
        raise OptionError("a merge of your own has no form in ONNX; use concat, sum, mean or mul")
    if merge == "concat" or directions == 1:
        return out.add("Reshape", y, out.integers(0, 0, -1))
    op = {"sum": "ReduceSum", "mean": "ReduceMean", "mul": "ReduceProd"}[merge]
    return out.add(op, y, out.integers(2), keepdims=0)


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
    operator = None if call.record else find_operator(call)
    if operator is not None:
        return _run_operator(call, operator)
    parts = [_run_scan(call, d) for d in range(call.directions)]
    count = len(call.cell.state_names)
    finals = [torch.stack([last[k] for last, _ in parts]) for k in range(count)]
    sequences = [torch.stack([ys[k] for _, ys in parts], 2) for k in range(sequence_count(call))]
    return [*sequences, *finals]


def _run_operator(call: Call, operator: Operator) -> list[Tensor]:
    """The operator of ONNX, which gives y as (T, D, B, H)."""
    W, R, B, P = order_weights(call, operator)
    states = [v.contiguous() for v in call.start()]
    lengths = None if call.lengths is None else call.lengths.to(torch.int32)
    inputs = [call.x, W, R, B, lengths, *states, *([] if P is None else [P])]
    T, D, rows, H = step_count(call), call.directions, call.rows, call.hidden_size
    y, *finals = torch.onnx.ops.symbolic_multi_out(
        operator.op, inputs, list_attributes(call, operator, "forward"),
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
    count, sequences = len(call.cell.state_names), sequence_count(call)

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
