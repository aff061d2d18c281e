"""from_onnx: the recurrent operators of a file as layers of ours. Nothing in a file is executed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from torch import nn

from throughtime.cells import Cell
from throughtime.errors import DataError
from throughtime.export.onnx.constants import Initialisers, Made, is_made
from throughtime.export.onnx.graph import onnx_package
from throughtime.export.onnx.operators import Operator, Reversed, Side, cell_of, put
from throughtime.export.program import Values
from throughtime.layers.recurrent import Recurrent

_INPUTS: Final = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_USUAL: Final = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",),
}  # fmt: skip
_DEEPEST: Final = 16
"""Graphs inside graphs that are looked into."""

_SIMPLE: Final = {"Tanh": "tanh", "Relu": "relu", "Sigmoid": "sigmoid"}


class _Node(NamedTuple):
    """A recurrent operator of a file.

    Attributes:
        place: where it stands, for errors.
        op: its name.
        attributes: by name.
        weights: W, R, B and P by name, those that are there.
    """

    place: str
    op: str
    attributes: Mapping[str, Any]
    weights: Mapping[str, Values]


def from_onnx(file: str | os.PathLike[str]) -> dict[str, nn.Module]:
    """Every RNN, GRU and LSTM of a file as a layer of ours, by the node's name or its output's.

    A layer takes x (T, B, I), where the node has layout 1 (B, T, I), and gives (outputs, state);
    two directions stand side by side in its outputs.

    Raises:
        DataError: the file is no ONNX, holds no recurrent operator, or one that no cell of ours is;
            its weights are missing, of a wrong shape or kept outside of the file.
        MissingExtra: onnx is not installed.
    """
    path = Path(file)
    found: dict[str, nn.Module] = {}
    for node, constants in _recurrent(_loaded(path).graph, {}):
        word = node.name or next(filter(None, node.output), node.op_type)
        name = next(n for k in count(1) if (n := f"{word}_{k}" if k > 1 else word) not in found)
        place = f"{path}, node {name!r},"
        found[name] = _layer(_node(place, node, constants, path.stat().st_size))
    if not found:
        raise DataError(f"{path} must hold an RNN, GRU or LSTM of ONNX, and it has none")
    return found


def _recurrent(
    graph: Any, outer: Mapping[str, Any], depth: int = 0
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The recurrent operators of a graph and of those in it, each with the constants it sees."""
    constants = {**outer, **{t.name: t for t in graph.initializer}}
    for node in graph.node:
        values = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
        if node.op_type == "Constant" and values and node.output:
            constants[node.output[0]] = values[0]
        elif is_made(node, constants):
            constants[node.output[0]] = Made(node, {i: constants[i] for i in node.input if i})
        if node.op_type in _USUAL and node.domain in ("", "ai.onnx"):
            yield node, constants
        inside = [a.g for a in node.attribute if a.HasField("g")]
        for part in inside if depth < _DEEPEST else ():
            yield from _recurrent(part, constants, depth + 1)


def _loaded(path: Path) -> Any:
    onnx = onnx_package()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own, whose place differs from version to version
        if isinstance(error, OSError):
            raise
        raise DataError(f"{path} must be a file of ONNX, and it is not ({error})") from error
    return model


def _node(place: str, node: Any, constants: Mapping[str, Any], size: int) -> _Node:
    helper = onnx_package().helper
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    names = dict(zip(_INPUTS, node.input, strict=False))
    read = Initialisers(place, constants, size)
    weights = {key: read.floats(key, names[key]) for key in ("W", "R", "B", "P") if names.get(key)}
    return _Node(place, node.op_type, attributes, weights)


def _layer(node: _Node) -> nn.Module:
    """The layer of a node."""
    D, found = _directions(node), _cell(node)
    W, R = node.weights.get("W"), node.weights.get("R")
    if W is None or R is None or W.ndim != 3 or R.ndim != 3:
        raise DataError(f"{node.place} must have W and R of three dimensions")
    H = int(node.attributes.get("hidden_size", R.shape[-1]))
    cell, op = found
    G, I = len(op.gates), W.shape[-1]
    wanted = {"W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
    for key, v in node.weights.items():
        if v.shape != wanted[key] or I < 1 or H < 1:
            raise DataError(f"{node.place} must have {key} of shape {wanted[key]}, got {v.shape}")
    layer = Recurrent(
        cell, I, H, bidirectional=D == 2, batch_first=bool(node.attributes.get("layout", 0))
    )
    _fill(layer, node, op, H)
    return Reversed(layer) if _direction(node) == "reverse" else layer


def _direction(node: _Node) -> str:
    value = node.attributes.get("direction", b"forward")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _directions(node: _Node) -> int:
    direction = _direction(node)
    if direction not in ("forward", "reverse", "bidirectional"):
        raise DataError(f"{node.place} has direction {direction!r}, which there is not")
    return 2 if direction == "bidirectional" else 1


def _cell(node: _Node) -> tuple[Cell, Operator]:
    """The cell that computes the same, and how its gates are ordered."""
    given = [a.decode(errors="replace") for a in node.attributes.get("activations", [])]
    each = len(_USUAL[node.op])
    sets = {tuple(given[i : i + each]) for i in range(0, len(given), each)} or {_USUAL[node.op]}
    simple = node.op == "RNN" and len(sets) == 1 and next(iter(sets))[0] in _SIMPLE
    if sets != {_USUAL[node.op]} and not simple:
        raise DataError(f"{node.place} has activations {given}, which no cell of ours has")
    coupled, peepholes = bool(node.attributes.get("input_forget")), "P" in node.weights
    if node.attributes.get("clip") or (coupled and peepholes):
        name = "input_forget" if coupled and peepholes else "clip"
        raise DataError(f"{node.place} has {name}={node.attributes[name]}, which no cell has")
    activation = next(iter(sets))[0]
    after = bool(node.attributes.get("linear_before_reset", 0))
    return cell_of(node.op, activation, after, peepholes, coupled)


def _fill(layer: Any, node: _Node, op: Operator, H: int) -> None:
    """The node's weights into the layer."""
    W, half = node.weights, len(op.gates) * H
    B = W.get("B", np.zeros((len(W["W"]), 2 * half), np.float32))
    for d in range(len(W["W"])):
        peepholes = {n: W["P"][d, k * H : (k + 1) * H] for k, n in enumerate(op.peepholes)}
        biases = B[d, :half], B[d, half:]
        put(layer, d, Side(op.gates, W["W"][d], W["R"][d], biases, peepholes))
