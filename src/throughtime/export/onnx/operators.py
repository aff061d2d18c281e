"""The three recurrent operators of ONNX, and which cell each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime import cells
from throughtime.backends.call import Call
from throughtime.cells import Cell


class Operator(NamedTuple):
    """A recurrent operator.

    Attributes:
        op: its name.
        gates: of our cell, in the operator's order.
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


def operator_of(call: Call) -> Operator | None:
    """The operator that computes a call, or None."""
    if call.zoneout is not None or call.recurrent_mask is not None:
        return None
    cell: Any = call.cell
    if type(cell) is cells.LSTM:
        return Operator("LSTM", _LSTM, 2, {})
    if type(cell) is cells.LSTMPeephole:
        return Operator("LSTM", _LSTM, 2, {}, ("w_ci", "w_co", "w_cf"))
    if type(cell) is cells.GRU:
        return Operator("GRU", _GRU, 1, {"linear_before_reset": 1})
    if type(cell) is cells.GRUResetBefore:
        return Operator("GRU", _GRU, 1, {"linear_before_reset": 0})
    if type(cell) is cells.Elman:
        name = {torch.tanh: "Tanh", torch.relu: "Relu", torch.sigmoid: "Sigmoid"}
        if cell.activation in name:
            return Operator("RNN", ("h",), 1, {"activations": name[cell.activation]})
    return None


def operator_weights(call: Call, found: Operator) -> list[np.ndarray[Any, Any] | None]:
    """W, R, B and the peepholes, (directions, ...), in the operator's order."""
    H, parts = call.hidden_size, list[list[np.ndarray[Any, Any]]]()
    for weights in call.weights:
        order = [_order(call.cell, found, side) for side in ("input_gates", "recurrent_gates")]
        W, R = (
            _gates(weights[f"weight_{n}"], o, H) for n, o in zip(("ih", "hh"), order, strict=True)
        )
        biases = [
            _gates(weights[n], o, H) if n in weights else np.zeros(len(o) * H, np.float32)
            for n, o in zip(("bias_ih", "bias_hh"), order, strict=True)
        ]
        peepholes = [weights[n].numpy() for n in found.peepholes]
        parts.append(
            [W, R, np.concatenate(biases), *([np.concatenate(peepholes)] if peepholes else [])]
        )
    stacked: list[np.ndarray[Any, Any] | None] = [
        np.stack(group) for group in zip(*parts, strict=True)
    ]
    return stacked if found.peepholes else [*stacked, None]


def _order(cell: Cell, found: Operator, side: str) -> list[int]:
    gates = getattr(cell.layout, side)
    return [gates.index(g) for g in found.gates]


def _gates(v: Tensor, order: list[int], H: int) -> np.ndarray[Any, Any]:
    """The gates' lines in another order."""
    return np.concatenate([v[k * H : (k + 1) * H].detach().numpy() for k in order])
