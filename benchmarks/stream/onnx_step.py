"""A stack with its readout as an ONNX model of one step, its states going in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from benchmarks.speed.peers.onnx_model import OPSET, ORDER
from throughtime.errors import missing_extra

STATES = {"GRU": ("h",), "LSTM": ("h", "c")}


def onnx_step(rnn: Any, readout: nn.Linear) -> Callable[[Any], Any]:
    """A function from x (I,) to y (O,), on one thread; the states are handed on by binding."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise missing_extra("onnxruntime", "bench") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    names = [f"{s}{i}" for i in range(rnn.num_layers) for s in STATES[rnn.mode]]
    model = _model(rnn, readout)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = np.zeros((1, 1, rnn.input_size), np.float32)
    y = np.zeros((1, 1, readout.out_features), np.float32)
    zeros = [np.zeros((1, 1, rnn.hidden_size), np.float32) for _ in names]
    values = [[ort.OrtValue.ortvalue_from_numpy(v.copy()) for v in zeros] for _ in range(2)]
    bindings = []
    for old, new in (values, values[::-1]):
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        place = y.__array_interface__["data"][0]
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, place)
        for name, a, b in zip(names, old, new, strict=True):
            binding.bind_ortvalue_input(name, a)
            binding.bind_ortvalue_output(f"new_{name}", b)
        bindings.append(binding)
    run = session.run_with_iobinding

    def step(v: Any) -> Any:
        x[0, 0] = v
        run(bindings[0])
        bindings.reverse()
        return y[0, 0].copy()

    return step


def _model(rnn: Any, readout: nn.Linear) -> bytes:
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise missing_extra("onnx", "bench") from None
    H, states = rnn.hidden_size, STATES[rnn.mode]
    # torch's GRU multiplies by r after the product: n = tanh(a.n + r * (U.n @ h)).
    extra = {"linear_before_reset": 1} if rnn.mode == "GRU" else {}
    nodes, held, below = [], {"axis": np.array([1])}, "x"
    for i in range(rnn.num_layers):
        held |= {f"{n}{i}": v for n, v in _weights(rnn, i).items()}
        given = [below, f"W{i}", f"R{i}", f"B{i}", "", *(f"{s}{i}" for s in states)]
        gives = [f"y{i}", *(f"new_{s}{i}" for s in states)]
        nodes.append(helper.make_node(rnn.mode, given, gives, hidden_size=H, **extra))
        nodes.append(helper.make_node("Squeeze", [f"y{i}", "axis"], [f"out{i}"]))
        below = f"out{i}"
    held["V"] = readout.weight.detach().numpy().T.copy()
    held["b"] = readout.bias.detach().numpy()
    nodes += [helper.make_node("MatMul", [below, "V"], ["product"]),
              helper.make_node("Add", ["product", "b"], ["y"])]  # fmt: skip

    def info(name: str, width: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, width))

    names = [f"{s}{i}" for i in range(rnn.num_layers) for s in states]
    graph = helper.make_graph(
        nodes, "step", [info("x", rnn.input_size), *(info(n, H) for n in names)],
        [info("y", readout.out_features), *(info(f"new_{n}", H) for n in names)],
        [numpy_helper.from_array(v, n) for n, v in held.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return bytes(made.SerializeToString())


def _weights(rnn: Any, layer: int) -> dict[str, Any]:
    """W (1, G H, I), R (1, G H, H) and B (1, 2 G H) of a layer, in ONNX's order of gates."""

    def blocks(name: str) -> Any:
        parts = np.split(getattr(rnn, f"{name}_l{layer}").detach().numpy(), len(ORDER[rnn.mode]))
        return np.concatenate([parts[i] for i in ORDER[rnn.mode]])[None]

    biases = np.concatenate([blocks("bias_ih"), blocks("bias_hh")], 1)
    return {"W": blocks("weight_ih"), "R": blocks("weight_hh"), "B": biases}
