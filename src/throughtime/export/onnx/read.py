"""from_onnx: the recurrent operators of a file as layers of ours. Nothing in a file is executed.

Constants are cut and joined as exporters write weights. Every size is checked before numbers are
made: a file yields no more than it can hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from torch import nn

from throughtime.cells import Cell
from throughtime.errors import DataError
from throughtime.export.operators import (
    Operator,
    Reversed,
    Side,
    fill_side,
    import_package,
    make_cell,
)
from throughtime.export.program import Values
from throughtime.layers import Recurrent

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
        weights: W, R, B and P by name, as far as the node has them.
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
            its weights are missing, of a wrong shape or stored outside of the file.
        MissingExtra: onnx is not installed.
    """
    path = Path(file)
    layers: dict[str, nn.Module] = {}
    for node, constants in find_recurrent(load_onnx(path).graph, {}):
        word = node.name or next(filter(None, node.output), node.op_type)
        name = next(n for k in count(1) if (n := f"{word}_{k}" if k > 1 else word) not in layers)
        place = f"{path}, node {name!r},"
        layers[name] = _make_layer(read_node(place, node, constants, path.stat().st_size))
    if not layers:
        raise DataError(f"{path} must hold an RNN, GRU or LSTM of ONNX, and it has none")
    return layers


def find_recurrent(
    graph: Any, outer: Mapping[str, Any], depth: int = 0
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The recurrent operators of a graph and of those in it, each with the constants it sees."""
    constants = {**outer, **{t.name: t for t in graph.initializer}}
    for node in graph.node:
        values = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
        if node.op_type == "Constant" and values and node.output:
            constants[node.output[0]] = values[0]
        elif node.op_type == "Expand" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]  # the same numbers for each row
        elif _is_constant(node, constants):
            constants[node.output[0]] = _Computed(node, {i: constants[i] for i in node.input if i})
        if node.op_type in _USUAL and node.domain in ("", "ai.onnx"):
            yield node, constants
        inside = [a.g for a in node.attribute if a.HasField("g")]
        for part in inside if depth < _DEEPEST else ():
            yield from find_recurrent(part, constants, depth + 1)


def load_onnx(path: Path) -> Any:
    model = import_package("onnx").ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own, whose place differs from version to version
        if isinstance(error, OSError):
            raise
        raise DataError(f"{path} must be a file of ONNX, and it is not ({error})") from error
    return model


def read_node(place: str, node: Any, constants: Mapping[str, Any], size: int) -> _Node:
    """A recurrent node with its weights; `size` is the bytes of the file."""
    names = dict(zip(_INPUTS, node.input, strict=False))
    read = _Initialisers(place, constants, size)
    weights = {key: read.floats(key, names[key]) for key in ("W", "R", "B", "P") if names.get(key)}
    for key in ("initial_h", "initial_c"):
        if names.get(key) in constants and read.floats(key, names[key]).any():
            raise DataError(
                f"{place} starts from a constant {key} that is not zero, which no layer here has; "
                f"make it an input of the file, and give it with each call"
            )
    return _Node(place, node.op_type, _attributes_of(node), weights)


def _attributes_of(node: Any) -> dict[str, Any]:
    helper = import_package("onnx").helper
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _make_layer(node: _Node) -> nn.Module:
    D, (cell, op) = _count_directions(node), _find_cell(node)
    W, R = node.weights.get("W"), node.weights.get("R")
    if W is None or R is None or W.ndim != 3 or R.ndim != 3:
        raise DataError(f"{node.place} must have W and R of three dimensions")
    H = int(node.attributes.get("hidden_size", R.shape[-1]))
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


def _count_directions(node: _Node) -> int:
    direction = _direction(node)
    if direction not in ("forward", "reverse", "bidirectional"):
        raise DataError(f"{node.place} has direction {direction!r}, which there is not")
    return 2 if direction == "bidirectional" else 1


def _find_cell(node: _Node) -> tuple[Cell, Operator]:
    """The cell that computes the same, and how its gates are ordered."""
    names = [a.decode(errors="replace") for a in node.attributes.get("activations", [])]
    each = len(_USUAL[node.op])
    sets = {tuple(names[i : i + each]) for i in range(0, len(names), each)} or {_USUAL[node.op]}
    simple = node.op == "RNN" and len(sets) == 1 and next(iter(sets))[0] in _SIMPLE
    if sets != {_USUAL[node.op]} and not simple:
        raise DataError(f"{node.place} has activations {names}, which no cell of ours has")
    coupled, peepholes = bool(node.attributes.get("input_forget")), "P" in node.weights
    if node.attributes.get("clip") or (coupled and peepholes):
        name = "input_forget" if coupled and peepholes else "clip"
        raise DataError(f"{node.place} has {name}={node.attributes[name]}, which no cell has")
    activation = next(iter(sets))[0]
    after = bool(node.attributes.get("linear_before_reset", 0))
    return make_cell(node.op, activation, after, peepholes, coupled)


def _fill(layer: Any, node: _Node, op: Operator, H: int) -> None:
    """The node's weights into the layer."""
    W, half = node.weights, len(op.gates) * H
    B = W.get("B", np.zeros((len(W["W"]), 2 * half), np.float32))
    for d in range(len(W["W"])):
        peepholes = {n: W["P"][d, k * H : (k + 1) * H] for k, n in enumerate(op.peepholes)}
        biases = B[d, :half], B[d, half:]
        fill_side(layer, d, Side(op.gates, W["W"][d], W["R"][d], biases, peepholes))


_LONGEST_CHAIN: Final = 32
_Array = np.ndarray[Any, Any]


class _Computed(NamedTuple):
    """A constant that a node cuts and joins of earlier ones."""

    node: Any
    constants: Mapping[str, Any]


def _is_constant(node: Any, constants: Mapping[str, Any]) -> bool:
    """Whether a node only cuts and joins constants."""
    known = bool(node.input) and all(i in constants for i in node.input if i)
    return node.op_type in _RULES and len(node.output) == 1 and known


class _Initialisers:
    """Reads constants.

    Args:
        place: of the node that reads them, for errors.
        known: by name, tensors or what is computed of them.
        size: bytes of the file.
    """

    def __init__(self, place: str, known: Mapping[str, Any], size: int) -> None:
        self.place, self.known, self.size = place, known, size
        self._values: dict[int, _Array] = {}  # each once, however often others need it

    def floats(self, key: str, name: str) -> _Array:
        """The float32 numbers of a constant; `key` is what it is to the node."""
        if name not in self.known:
            raise DataError(
                f"{self.place} must have its {key} as a constant of the file, got {name!r}, which "
                f"is computed, or an input"
            )
        values = self._value(key, self.known[name], 0)
        if values.dtype != np.float32:
            raise DataError(f"{self.place} must have float32 weights, got {values.dtype} for {key}")
        return np.ascontiguousarray(values)

    def _value(self, key: str, source: Any, depth: int) -> _Array:
        if id(source) not in self._values:
            values = (self._compute(key, source, depth) if isinstance(source, _Computed)
                      else self._read_tensor(key, source))  # fmt: skip
            self._values[id(source)] = values
        return self._values[id(source)]

    def _compute(self, key: str, source: _Computed, depth: int) -> _Array:
        if depth > _LONGEST_CHAIN:
            raise DataError(
                f"{self.place} has a {key} that is made in more than {_LONGEST_CHAIN} steps"
            )
        node, known = source
        values = [self._value(key, known[i], depth + 1) if i else None for i in node.input]
        count = sum(v.size for v in values if v is not None)
        self._check_size(key, (count,))
        try:
            return _RULES[node.op_type](_attributes_of(node), *values)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise DataError(f"{self.place} has a {key} that cannot be made ({error})") from error

    def _check_size(self, key: str, dims: tuple[int, ...]) -> None:
        if any(n < 0 for n in dims) or math.prod(dims) * 4 > 4 * self.size:
            raise DataError(f"{self.place} says {key} is {list(dims)}, more than the file holds")

    def _read_tensor(self, key: str, tensor: Any) -> _Array:
        onnx = import_package("onnx")
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise DataError(
                f"{self.place} keeps {key} in another file, which is not opened; write the model "
                f"again with all weights inside"
            )
        self._check_size(key, tuple(tensor.dims))
        try:
            values: _Array = np.array(onnx.numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self.place} has a {key} that cannot be read ({error})") from error
        return values


def _axes(attributes: Mapping[str, Any], axes: _Array | None) -> tuple[int, ...]:
    return tuple(map(int, attributes["axes"] if axes is None else axes.tolist()))


def _slice(
    attributes: Mapping[str, Any], x: _Array, starts: Any = None, ends: Any = None,
    axes: Any = None, steps: Any = None,
) -> _Array:  # fmt: skip
    starts = attributes["starts"] if starts is None else starts.tolist()
    ends = attributes["ends"] if ends is None else ends.tolist()
    if axes is None:
        axes = attributes.get("axes", range(len(starts)))
    cut = [slice(None)] * x.ndim
    for k, axis in enumerate(axes):
        step = None if steps is None else int(steps[k])
        cut[int(axis)] = slice(int(starts[k]), int(ends[k]), step)
    return x[tuple(cut)]


_RULES: Final[dict[str, Callable[..., _Array]]] = {
    "Identity": lambda attributes, x: x,
    "Unsqueeze": lambda attributes, x, axes=None: np.expand_dims(x, _axes(attributes, axes)),
    "Squeeze": lambda attributes, x, axes=None: np.squeeze(x, _axes(attributes, axes)),
    "Transpose": lambda attributes, x: np.transpose(x, attributes.get("perm")),
    "Concat": lambda attributes, *parts: np.concatenate(parts, attributes["axis"]),
    "Slice": _slice,
}
