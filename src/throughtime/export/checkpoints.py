"""Weights without a description of their model: trees of Flax, and dicts of torch as safetensors.

Names and shapes say which recurrent layers they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import DataError, OptionError, import_extra
from throughtime.export.operators import (
    Operator,
    Side,
    fill_side,
    find_operator,
    import_package,
    make_cell,
    order_weights,
)
from throughtime.export.pieces import copy_model, list_pieces
from throughtime.export.program import Values
from throughtime.layers import Recurrent
from throughtime.layers.layer import Passage

_KINDS: Final = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n"), "RNN": ("",)}
"""By the operator of ONNX that they are: our gates by Flax's letters, in its fused order."""

_CLASSES: Final = {"LSTM": "OptimizedLSTMCell", "GRU": "GRUCell", "RNN": "SimpleCell"}
_ARRAY: Final = 1
_NUMBER: Final = 3
"""What Flax's files mark arrays and single numbers by."""

_DEEPEST: Final = 32
Tree = Mapping[str, Any]


def from_flax(
    tree: Tree | str | os.PathLike[str], pairs: Sequence[tuple[str, str]] = ()
) -> dict[str, nn.Module]:
    """Every LSTM, GRU and simple cell of a tree of parameters, by its path, as layers of ours.

    Layers take x (B, T, I), as Flax's do, and give (outputs, state).

    Args:
        tree: of dicts and arrays, as `init` gives it, linen's or nnx's as plain dicts; or a file
            of `flax.serialization.to_bytes`.
        pairs: paths of a forward and a backward cell that are one layer of two directions, their
            outputs side by side; it is called by the first.

    Raises:
        DataError: the file is none of Flax, or has no such cell; says why.
        MissingExtra: it is a file and msgpack is not installed.
    """
    if isinstance(tree, str | os.PathLike):
        place: str = str(Path(tree))
        tree = _read_file(Path(tree))
    else:
        place = "the tree"
    if not isinstance(tree, Mapping):
        raise DataError(f"tree must be a dict or a file, got {type(tree).__name__}")
    sides = dict(_list_cells(place, tree, ""))
    if not sides:
        raise DataError(f"{place} must hold an LSTM, GRU or simple cell of Flax, and it has none")
    _check_pairs(place, pairs, sides)
    backward, layers = dict(pairs), dict[str, nn.Module]()
    for name, (op, side) in sides.items():
        if name in backward.values():
            continue
        parts = [side, *([sides[backward[name]][1]] if name in backward else [])]
        I, H = side.W.shape[1], side.R.shape[1]
        if any(p.W.shape != side.W.shape or p.R.shape != side.R.shape for p in parts):
            raise DataError(f"{place} has {name!r} and its partner of different shapes")
        layer = Recurrent(make_cell(op)[0], I, H, bidirectional=len(parts) == 2, batch_first=True)
        for d, part in enumerate(parts):
            fill_side(layer, d, part)
        layers[name] = layer
    return layers


def _check_pairs(
    place: str, pairs: Sequence[tuple[str, str]], sides: Mapping[str, tuple[str, Side]]
) -> None:
    names = [name for pair in pairs for name in pair]
    for name in names:
        if name not in sides:
            raise DataError(f"{place} has no cell {name!r}, it has {', '.join(sides)}")
        if names.count(name) > 1:
            raise OptionError(f"pairs must name each cell once, got {name!r} twice")


def _list_cells(
    place: str, tree: Tree, path: str, depth: int = 0
) -> Iterator[tuple[str, tuple[str, Side]]]:
    """The cells of a tree: path, operator, weights."""
    if depth > _DEEPEST:
        raise DataError(f"{place} is a tree of more than {_DEEPEST} levels")
    for op in _KINDS:
        side = _read_side(place, tree, path, op)
        if side is not None:
            yield path or "cell", (op, side)
            return
    for name, inner in tree.items():
        if isinstance(inner, Mapping):
            yield from _list_cells(place, inner, f"{path}/{name}".lstrip("/"), depth + 1)


def _read_side(place: str, tree: Tree, path: str, op: str) -> Side | None:
    """The weights of a cell of one kind; None where the tree is none."""
    parts = _read_fused(tree, op) or _read_by_gate(tree, op)
    if parts is None:
        return None
    gates = _KINDS[op] if op != "RNN" else ("h",)
    W, R, b, u = parts
    G, H, where = len(gates), R.shape[0], f"{place}, cell {path!r},"
    if W.ndim != 2 or R.shape != (H, G * H) or W.shape[1] != G * H or not W.size or not R.size:
        raise DataError(f"{where} must have kernels for {G} gates, got {W.shape} and {R.shape}")
    for v in (b, u):
        if v is not None and v.shape != (G * H,):
            raise DataError(f"{where} must have biases of {G * H} numbers, got {v.shape}")
    return Side(gates, W.T, R.T, (b, u))


_Parts = tuple[Values, Values, Values | None, Values | None]


def _read_fused(tree: Tree, op: str) -> _Parts | None:
    """Of a cell of nnx whose gates lie side by side."""
    if set(tree) != {"dense_i", "dense_h"}:
        return None
    (W, b), (R, u) = (_read_linear(tree[n]) for n in ("dense_i", "dense_h"))
    if W is None or R is None or R.ndim != 2 or R.shape[1] != len(_KINDS[op]) * R.shape[0]:
        return None
    return W, R, b, u


def _read_by_gate(tree: Tree, op: str) -> _Parts | None:
    """Of a cell whose gates are parts of their own."""
    letters = _KINDS[op]
    names = [[f"{side}{g}" for g in letters] for side in "ih"]
    tree = {"if" if n == "if_" else n: v for n, v in tree.items()}
    if set(tree) != {n for side in names for n in side}:
        return None
    parts: list[Values | None] = []
    for side in names:
        each = [_read_linear(tree[n]) for n in side]
        kernels = [k for k, _ in each if k is not None and k.ndim == 2]
        if len(kernels) != len(each) or len({k.shape for k in kernels}) != 1:
            return None
        zeros, some = np.zeros(kernels[0].shape[1], np.float32), any(b is not None for _, b in each)
        biases = np.concatenate([zeros if b is None else b for _, b in each])
        parts += [np.concatenate(kernels, 1), biases if some else None]
    W, b, R, u = parts
    assert W is not None and R is not None
    return W, R, b, u


def _read_linear(tree: Any) -> tuple[Values | None, Values | None]:
    """Kernel and bias of a linear part; None for what is none."""
    if not isinstance(tree, Mapping) or not hasattr(tree.get("kernel"), "shape"):
        return None, None
    kernel, bias = tree["kernel"], tree.get("bias")
    return np.asarray(kernel, np.float32), None if bias is None else np.asarray(bias, np.float32)


def to_flax(layer: nn.Module, file: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """A recurrent layer's weights as Flax's compact modules name them, {"params": {...}}.

    Cells are called `OptimizedLSTMCell_0`, `GRUCell_0` or `SimpleCell_0` and so on, layer by
    layer, the backward one after the forward one, as `nn.Bidirectional(nn.RNN(cell), ...)` and
    the next ask for them.

    Args:
        layer: whose cell Flax has: LSTM, GRU, RNN with tanh.
        file: where to write them, as `flax.serialization.to_bytes` does.

    Raises:
        OptionError: Flax has no such cell.
        MissingExtra: a file is wanted and msgpack is not installed.
    """
    resting = copy_model(layer)
    if not isinstance(resting, Passage) or len(list_pieces(resting)) != 1:
        raise OptionError(f"layer must be a recurrent layer, got {type(layer).__name__}")
    recurrent: Any = resting
    cells: dict[str, Any] = {}
    for i in range(len(recurrent.widths)):
        call = recurrent._example(i)
        operator = find_operator(call)
        plain = operator is not None and dict(operator.attributes) in _PLAIN
        special = call.initial is not None or set(recurrent.dilations) != {1}
        if operator is None or not plain or operator.peepholes or special:
            raise OptionError(f"{call.cell!r} is no cell that Flax has")
        for d in range(call.directions):
            cells[f"{_CLASSES[operator.op]}_{len(cells)}"] = _make_tree(call, operator, d)
    tree = {"params": cells}
    if file is not None:
        _write_file(Path(file), tree)
    return tree


_PLAIN: Final[tuple[dict[str, Any], ...]] = (
    {}, {"linear_before_reset": 1}, {"activations": "Tanh"},
)  # fmt: skip
"""Attributes of the operators that Flax has."""


def _make_tree(call: Any, operator: Operator, d: int) -> dict[str, Any]:
    """A cell's parameters; biases that Flax lacks go into those it has."""
    weights = order_weights(call, operator)[:3]
    W, R, B = (v[d].detach().numpy() for v in weights if v is not None)
    H, tree = call.hidden_size, dict[str, Any]()
    b, u = np.split(B, 2)
    for letter in _KINDS[operator.op]:
        here = slice(k := operator.gates.index(letter or "h") * H, k + H)
        tree[f"i{letter}"] = {"kernel": np.ascontiguousarray(W[here].T)}
        tree[f"h{letter}"] = {"kernel": np.ascontiguousarray(R[here].T)}
        if letter == "n":
            tree["in"]["bias"], tree["hn"]["bias"] = b[here].copy(), u[here].copy()
        else:
            side = "h" if operator.op == "LSTM" else "i"
            tree[f"{side}{letter}"]["bias"] = b[here] + u[here]
    return tree


def _read_file(path: Path) -> Tree:
    """The tree of a file of `flax.serialization.to_bytes`.

    Raises:
        DataError: it is none, or says to hold more than it does.
    """
    msgpack, content = import_package("msgpack"), path.read_bytes()

    def array(code: int, data: bytes) -> Any:
        if code not in (_ARRAY, _NUMBER):
            raise ValueError(f"an extension of kind {code}")
        shape, kind, numbers = msgpack.unpackb(data, use_list=True)
        name = kind.decode() if isinstance(kind, bytes) else kind
        if name not in ("float32", "float64", "float16"):
            return None  # counters and keys, which no cell has
        return np.frombuffer(numbers, np.dtype(name)).reshape(shape).astype(np.float32)

    try:
        tree = msgpack.unpackb(content, ext_hook=array, strict_map_key=False)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise DataError(f"{path} must be a file of Flax, and it is not ({error})") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} must hold a tree of Flax, got {type(tree).__name__}")
    return {str(k): v for k, v in tree.items()}


def _write_file(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree of dicts and arrays as Flax does."""
    msgpack = import_package("msgpack")

    def array(v: Any) -> Any:
        parts = v.shape, v.dtype.name, v.tobytes()
        return msgpack.ExtType(_ARRAY, msgpack.packb(parts, use_bin_type=True))

    path.write_bytes(msgpack.packb(tree, default=array, use_bin_type=True, strict_types=True))


_OPERATORS: Final = {4: "LSTM", 3: "GRU", 1: "RNN"}
"""By how many gates there are in torch's matrices."""

_LAYER: Final = re.compile(r"^(?:(.*)\.)?weight_hh(?:_l0)?$")


def from_safetensors(file: str | os.PathLike[str]) -> dict[str, nn.Module]:
    """Every layer and cell by torch.nn's names (`weight_ih_l0`, `weight_ih`), by its path.

    How many gates its matrices have says what it is: LSTM, GRU, or RNN with tanh.

    Raises:
        DataError: the file is no safetensors, or holds no such layer, or one that is not whole.
        MissingExtra: safetensors is not installed.
    """
    path = Path(file)
    load_file = import_extra("safetensors.torch", "train").load_file
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except import_extra("safetensors", "train").SafetensorError as error:
        raise DataError(f"{path} must be a file of safetensors, and it is not ({error})") from error
    prefixes = [m[1] or "" for m in map(_LAYER.match, tensors) if m]
    if not prefixes:
        raise DataError(
            f"{path} must hold a layer or cell by torch.nn's names (weight_hh_l0, weight_hh), and "
            f"it has none"
        )
    return {p or "layer": _make_layer(f"{path}, layer {p!r},", p, tensors) for p in prefixes}


def _make_layer(place: str, prefix: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    head = f"{prefix}." if prefix else ""
    names = {n: n[len(head) :] for n in tensors if n.startswith(head)}
    weights = {short if "_l" in short else f"{short}_l0": tensors[n] for n, short in names.items()
           if re.fullmatch(r"(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?", short)}  # fmt: skip
    W, R = weights.get("weight_ih_l0"), weights["weight_hh_l0"]
    gates = R.shape[0] // R.shape[-1] if R.dim() == 2 and R.shape[-1] else 0
    if W is None or W.dim() != 2 or gates not in _OPERATORS or gates * R.shape[1] != R.shape[0]:
        raise DataError(
            f"{place} must have matrices of 4, 3 or 1 gates, got {list(R.shape)} as weight_hh_l0"
        )

    numbers = {int(n) for name in weights for n in re.findall(r"_l(\d+)", name)}
    if numbers != set(range(len(numbers))):
        raise DataError(f"{place} must have all layers from 0 on, got {sorted(numbers)}")
    layer = Recurrent(
        make_cell(_OPERATORS[gates])[0], W.shape[1], R.shape[1], num_layers=len(numbers),
        bias="bias_ih_l0" in weights, bidirectional="weight_ih_l0_reverse" in weights,
    )  # fmt: skip
    try:
        layer.load_state_dict({n: v.to(torch.float32) for n, v in weights.items()})
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise DataError(f"{place} must be whole, and it is not ({words})") from error
    return layer
