"""The case's layer as an ONNX model: one RNN, GRU or LSTM node with the weights inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.material import Material
from throughtime.errors import missing_extra

# Blocks of torch's weights in ONNX's order: z, r, h for a GRU and i, o, f, c for an LSTM.
ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
OUTPUTS = {"RNN": ("y", "h_n"), "GRU": ("y", "h_n"), "LSTM": ("y", "h_n", "c_n")}
OPSET = 14


def onnx_model(m: Material) -> bytes:
    """A model x (T, B, I) -> y (T, 1, B, H), h_n (1, B, H)[, c_n]; the start is zero."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise missing_extra("onnx", "bench") from None
    T, B, I, H = m.shape.T, m.shape.B, m.shape.I, m.shape.H
    # torch's GRU multiplies by r after the product: n = tanh(a.n + r * (U.n @ h)).
    options: dict[str, Any] = {"linear_before_reset": 1} if m.cell == "GRU" else {}
    names = OUTPUTS[m.cell]
    node = helper.make_node(m.cell, ["x", "W", "R", "B"], names, hidden_size=H, **options)
    shapes = {"y": (T, 1, B, H), "h_n": (1, B, H), "c_n": (1, B, H)}
    graph = helper.make_graph(
        [node],
        m.cell,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (T, B, I))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in names],
        [numpy_helper.from_array(v.numpy(), n) for n, v in initialisers(m).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return bytes(model.SerializeToString())


def initialisers(m: Material) -> dict[str, Tensor]:
    """W (1, G H, I), R (1, G H, H) and B (1, 2 G H), both biases one after the other."""

    def blocks(name: str) -> Tensor:
        parts = m.weights[f"{name}_l0"].chunk(len(ORDER[m.cell]))
        return torch.cat([parts[i] for i in ORDER[m.cell]]).unsqueeze(0)

    biases = torch.cat([blocks("bias_ih"), blocks("bias_hh")], 1)
    return {"W": blocks("weight_ih"), "R": blocks("weight_hh"), "B": biases}
