"""to_onnx: a model over whole sequences as one file of ONNX."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from throughtime.compiler.passes import HIDDEN
from throughtime.errors import OptionError
from throughtime.export.onnx.graph import OnnxGraph, Operations, onnx_package
from throughtime.export.onnx.layers import LayerInputs, write_layer
from throughtime.export.operators import Reversed
from throughtime.export.pieces import (
    Piece,
    check_each_step,
    check_stack,
    describe_part,
    input_width,
    list_pieces,
    norm_function,
    trace_function,
)
from throughtime.export.prepare import copy_model
from throughtime.layers.layer import Passage
from throughtime.layers.readout import Gate
from throughtime.version import __version__

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
        OptionError: the model or an option cannot be copy_model; says why.
        MissingExtra: onnx is not installed.
        OSError: the file cannot be written.
    """
    onnx = onnx_package()
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
        self.value = onnx_package().helper.make_tensor_value_info
        for word in ("x", "y", "lengths"):
            self.out.name(word)
        layers: list[Any] = [_layer_of(p.module) for p in pieces if _layer_of(p.module)]
        self.batch_first = bool(layers) and layers[0].batch_first
        self.lengths = "lengths" if lengths else None
        self.inputs: dict[str, str] = {}
        self._count = 0

    def write(self) -> Any:
        """The graph."""
        at, width = self._write_input()
        for piece in self.pieces:
            module = piece.module
            if isinstance(module, Passage | Reversed):
                at, width = self._write_recurrent(at, module)
            else:
                at, width = self._write_part(at, width, module)
        if self.batch_first:
            at = self.out.add("Transpose", at, perm=[1, 0, 2])
        node = onnx_package().helper.make_node("Identity", [at], ["y"], name="leave")
        self.out.nodes.append(node)
        order = ["B", "T"] if self.batch_first else ["T", "B"]
        self.outs.insert(0, self.value("y", 1, [*order, width]))
        if self.lengths:
            self.ins.append(self.value("lengths", 6, ["B"]))
        make = onnx_package().helper.make_graph
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
            width = input_width(Piece(self.pieces[0].path, first))
            self.ins.append(self.value("x", 1, [*order, width]))
        if isinstance(first, Passage):
            self._write_direct_inputs(first, order)
        if self.batch_first:
            at = str(self.out.add("Transpose", at, perm=perm))
        axis = self.out.constant(np.array([1], np.int64))
        self.rows = str(self.out.add("Gather", self.out.add("Shape", at), axis, axis=0))
        return at, width

    def _write_direct_inputs(self, first: Passage, order: list[str]) -> None:
        """Direct inputs of the first layer, by name."""
        for name in first.cell.layout.inputs:
            width = first.cell.width(first.cell.inputs[name], first.hidden_sizes[0])
            word = self.out.name(name)
            self.ins.append(self.value(word, 1, [*order, width]))
            self.inputs[name] = word
            if self.batch_first:
                self.inputs[name] = str(self.out.add("Transpose", word, perm=[1, 0, 2]))

    def _write_recurrent(self, at: str, module: Any) -> tuple[str, int]:
        """All layers of a recurrent layer."""
        layer: Any = _layer_of(module)
        if set(layer.dilations) != {1}:
            raise OptionError("a dilated layer has no form in ONNX here; use dilation=1")
        for i in range(len(layer.widths)):
            call = layer._example(i, 1, 1, False, False, False)
            states = self._write_states(call)
            backward = layer is not module
            inputs = LayerInputs(
                at, self.rows, self.lengths, states, self.inputs, backward, self.operators
            )
            y, last = write_layer(self.out, call, inputs)
            merged = _merge(self.out, y, layer.options.merge, call.directions)
            if i and layer.options.residual:
                merged = str(self.out.add("Add", merged, at))
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
            make = onnx_package().helper.make_node
            self.out.nodes.append(make("Identity", [v], [word], name=self.out.name("give")))
            self.outs.append(self.value(word, 1, [call.directions, "B", width]))

    def _write_part(self, at: str, width: int, part: Any) -> tuple[str, int]:
        """A part that looks at each step alone."""
        if isinstance(part, nn.Linear):
            matrix = self.out.constant(np.ascontiguousarray(part.weight.numpy().T))
            y = self.out.add("MatMul", at, matrix)
            if part.bias is not None:
                y = self.out.add("Add", y, self.out.constant(part.bias.numpy()))
            return str(y), part.out_features
        if isinstance(part, nn.Embedding):
            table = self.out.constant(part.weight.numpy())
            return str(self.out.add("Gather", table, at, axis=0)), part.embedding_dim
        if isinstance(part, Gate):
            z, inner = at, width
            for piece in list_pieces(part.network):
                z, inner = self._write_part(z, inner, piece.module)
            return str(self.out.add("Mul", at, self.out.add("Sigmoid", z))), width
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
        return norm_function(part)
    return part.forward if isinstance(part, nn.Module) else part, {}


def _merge(out: OnnxGraph, y: str, merge: Any, directions: int) -> str:
    """(T, B, D, width) to (T, B, width)."""
    if callable(merge):
        raise OptionError("a merge of your own has no form in ONNX; use concat, sum, mean or mul")
    if merge == "concat" or directions == 1:
        return str(out.add("Reshape", y, out.constant(np.array([0, 0, -1], np.int64))))
    op = {"sum": "ReduceSum", "mean": "ReduceMean", "mul": "ReduceProd"}[merge]
    return str(out.add(op, y, out.constant(np.array([2], np.int64)), keepdims=0))
