"""Cells by the names that other formats share: ONNX's three recurrent operators.

Writers ask which operator a call is, readers which cell an operator is; a reader puts weights into
a layer of ours here, and writes the layers that it read into a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from throughtime import cells
from throughtime.backends.call import Call
from throughtime.cells import Cell
from throughtime.errors import import_extra
from throughtime.export.folder import fill_template
from throughtime.export.program import Values
from throughtime.layers import Recurrent


def import_package(name: str) -> Any:
    """A package of the extra `export`.

    Raises:
        MissingExtra: it is not installed.
    """
    return import_extra(name, "export")


class Operator(NamedTuple):
    """A recurrent operator.

    Attributes:
        op: its name.
        gates: of our cell, in the operator's order; one that it computes of another has no lines
            in our weights, and zeros in the operator's.
        states: how many it has.
        attributes: that make it our cell.
        peepholes: our vectors, in the operator's order.
    """

    op: str
    gates: tuple[str, ...]
    states: int
    attributes: Mapping[str, Any]
    peepholes: tuple[str, ...] = ()


_LSTM: Final = ("i", "o", "f", "g")
_GRU: Final = ("z", "r", "n")


def find_operator(call: Call) -> Operator | None:
    """The operator that computes a call, or None."""
    if call.zoneout is not None or call.recurrent_mask is not None:
        return None
    cell: Any = call.cell
    if type(cell) is cells.LSTM:
        return Operator("LSTM", _LSTM, 2, {})
    if type(cell) is cells.LSTMPeephole:
        return Operator("LSTM", _LSTM, 2, {}, ("w_ci", "w_co", "w_cf"))
    if type(cell) is cells.LSTMCoupled:
        return Operator("LSTM", _LSTM, 2, {"input_forget": 1})
    if type(cell) is cells.GRU:
        return Operator("GRU", _GRU, 1, {"linear_before_reset": 1})
    if type(cell) is cells.GRUResetBefore:
        return Operator("GRU", _GRU, 1, {"linear_before_reset": 0})
    if type(cell) is cells.Elman:
        name = {torch.tanh: "Tanh", torch.relu: "Relu", torch.sigmoid: "Sigmoid"}
        if cell.activation in name:
            return Operator("RNN", ("h",), 1, {"activations": name[cell.activation]})
    return None


def order_weights(call: Call, operator: Operator) -> list[Tensor | None]:
    """W, R, B and the peepholes, (directions, ...), in the operator's order."""
    H, parts = call.hidden_size, list[list[Tensor]]()
    for weights in call.weights:
        orders = [_order_gates(call.cell, operator, s) for s in ("input_gates", "recurrent_gates")]

        def gates(v: Tensor, order: list[int]) -> Tensor:
            none = torch.zeros_like(v[:H])
            return torch.cat([v[k * H : (k + 1) * H] if k >= 0 else none for k in order])

        W, R = (gates(weights[f"weight_{n}"], o) for n, o in zip(("ih", "hh"), orders, strict=True))
        biases = [
            gates(weights[n], o) if n in weights else W.new_zeros(len(o) * H)
            for n, o in zip(("bias_ih", "bias_hh"), orders, strict=True)
        ]
        vectors = [weights[n] for n in operator.peepholes]
        parts.append([W, R, torch.cat(biases), *([torch.cat(vectors)] if vectors else [])])
    stacked: list[Tensor | None] = [torch.stack(group) for group in zip(*parts, strict=True)]
    return stacked if operator.peepholes else [*stacked, None]


def _order_gates(cell: Cell, operator: Operator, side: str) -> list[int]:
    gates = getattr(cell.layout, side)
    return [gates.index(g) if g in gates else -1 for g in operator.gates]


def make_cell(
    op: str, activation: str = "Tanh", after: bool = True, peepholes: bool = False,
    coupled: bool = False,
) -> tuple[Cell, Operator]:  # fmt: skip
    """The cell that an operator is, and how its gates are ordered there.

    Args:
        op: its name.
        activation: of an RNN: Tanh, Relu or Sigmoid.
        after: of a GRU: whether its reset gate comes after the product.
        peepholes: of an LSTM.
        coupled: of an LSTM, whether f = 1 - i.
    """
    if op == "RNN":
        cell: Cell = cells.Elman(activation.lower())
    elif op == "GRU":
        cell = cells.GRU() if after else cells.GRUResetBefore()
    else:
        cell = cells.LSTMPeephole() if peepholes else cells.LSTM()
        cell = cells.LSTMCoupled() if coupled else cell
    operator = find_operator(Recurrent(cell, 1, 1)._example(0))
    assert operator is not None
    return cell, operator


class Side(NamedTuple):
    """Weights of one direction.

    Attributes:
        order: the gates as they stand in the matrices.
        W, R: (gates H, I) and (gates H, H).
        biases: of W and of R, (gates H,); None is zero.
        peepholes: by name.
    """

    order: tuple[str, ...]
    W: Values
    R: Values
    biases: tuple[Values | None, Values | None] = (None, None)
    peepholes: Mapping[str, Values] = MappingProxyType({})


@torch.no_grad()
def fill_side(layer: Any, d: int, side: Side) -> None:
    """One direction's weights into the first layer of `layer`, the gates in our order."""
    layout, weights, H = layer.cell.layout, layer.weights(0, d), side.R.shape[1]
    parts = (
        ("ih", layout.input_gates, side.W, side.biases[0]),
        ("hh", layout.recurrent_gates, side.R, side.biases[1]),
    )
    for name, gates, matrix, bias in parts:
        for k, gate in enumerate(gates):
            here = slice(k * H, (k + 1) * H)
            theirs = slice(side.order.index(gate) * H, (side.order.index(gate) + 1) * H)
            weights[f"weight_{name}"][here] = torch.from_numpy(matrix[theirs].copy())
            if f"bias_{name}" in weights:
                value = 0.0 if bias is None else torch.from_numpy(bias[theirs].copy())
                weights[f"bias_{name}"][here] = value
    for name, v in side.peepholes.items():
        weights[name].copy_(torch.from_numpy(v.copy()))


class Reversed(nn.Module):
    """Runs a layer from a row's end to its begin; outputs stand at the steps they belong to.

    Args:
        layer: of one direction.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> Any:
        """(outputs, state) of x (T, B, I), or (B, T, I) where the layer is batch_first."""
        time = 1 if self.layer.batch_first else 0
        T, B = x.shape[time], x.shape[1 - time]
        steps = torch.arange(T, device=x.device).unsqueeze(1)
        ends = torch.as_tensor([T] * B if lengths is None else lengths, device=x.device).long()
        order = torch.where(steps < ends, ends - 1 - steps, steps)  # its own inverse

        def turn(v: Tensor) -> Tensor:
            return v.gather(time, (order.T if time else order).unsqueeze(-1).expand_as(v))

        y, last = self.layer(turn(x), state, lengths=lengths)
        return turn(y), last


def write_layers(
    layers: Mapping[str, nn.Module], out: str | os.PathLike[str], source: str
) -> dict[str, str]:
    """Write layers into a folder: `layers.py`, which builds them, and their `weights.npz`.

    Args:
        layers: by name, as `from_onnx` gives them.
        out: the folder, which is made if need be.
        source: where they are from, as `layers.py` says.

    Returns:
        For each layer its name in `layers.py`.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    lines, weights = list[str](), dict[str, Any]()
    for word, layer in layers.items():
        name = names[word] = _make_name(word, names)
        inner: Any = layer.layer if isinstance(layer, Reversed) else layer
        built = f"_filled({name!r}, Recurrent(cells.{inner.cell!r}, {_write_options(inner)}))"
        if isinstance(layer, Reversed):
            built += "  # the file reads it backward"
        lines.append(f"{name} = {built}")
        weights |= {f"{name}.{key}": v.numpy() for key, v in inner.state_dict().items()}
    np.savez(folder / "weights.npz", **weights)
    source = re.sub(r'[\\"\n]', "_", source)
    text = fill_template("layers.txt", "@", LINES="\n".join(lines), SOURCE=source)
    (folder / "layers.py").write_text(text, encoding="utf-8")
    return names


def _make_name(word: str, names: Mapping[str, str]) -> str:
    """A layer's name in `layers.py`, where nothing else has it."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", word).strip("_").lower()
    if not name[:1].isalpha() or iskeyword(name) or name in ("numpy", "torch", "cells"):
        name = f"layer_{name}".rstrip("_")
    while name in names.values():
        name += "_"
    return name


def _write_options(layer: Any) -> str:
    words = [str(layer.input_size), str(layer.hidden_sizes[0])]
    words += [f"num_layers={len(layer.widths)}"] * (len(layer.widths) > 1)
    words += ["bias=False"] * (not any(n.startswith("bias_") for n in layer.state_dict()))
    if layer.directions == 2:
        merge = layer.options.merge
        words += ["bidirectional=True", *([f"merge={merge!r}"] if merge != "concat" else [])]
    words += ["batch_first=True"] * layer.batch_first
    return ", ".join(words)
