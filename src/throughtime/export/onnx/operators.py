"""The three recurrent operators of ONNX, and which cell each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

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


def operator_weights(call: Call, found: Operator) -> list[Tensor | None]:
    """W, R, B and the peepholes, (directions, ...), in the operator's order."""
    H, parts = call.hidden_size, list[list[Tensor]]()
    for weights in call.weights:
        orders = [_order(call.cell, found, s) for s in ("input_gates", "recurrent_gates")]

        def gates(v: Tensor, order: list[int]) -> Tensor:
            return torch.cat([v[k * H : (k + 1) * H] for k in order])

        W, R = (gates(weights[f"weight_{n}"], o) for n, o in zip(("ih", "hh"), orders, strict=True))
        biases = [
            gates(weights[n], o) if n in weights else W.new_zeros(len(o) * H)
            for n, o in zip(("bias_ih", "bias_hh"), orders, strict=True)
        ]
        peepholes = [torch.cat([weights[n] for n in found.peepholes])] if found.peepholes else []
        parts.append([W, R, torch.cat(biases), *peepholes])
    stacked: list[Tensor | None] = [torch.stack(group) for group in zip(*parts, strict=True)]
    return stacked if found.peepholes else [*stacked, None]


def _order(cell: Cell, found: Operator, side: str) -> list[int]:
    gates = getattr(cell.layout, side)
    return [gates.index(g) for g in found.gates]
