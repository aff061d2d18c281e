"""OpenVINO on the case's ONNX model."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.speed.contender import Contender
from benchmarks.speed.figures import flops
from benchmarks.speed.material import Material
from benchmarks.speed.peers.onnx_model import OUTPUTS, onnx_model
from throughtime.errors import missing_extra


def contender(m: Material) -> Contender:
    """One request on torch's number of threads, in float32; input and outputs are shared."""
    try:
        import openvino
    except ImportError:
        raise missing_extra("openvino", "bench") from None
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the machine has it
    }
    request = core.compile_model(core.read_model(onnx_model(m)), "CPU", settings)
    request = request.create_infer_request()
    x = m.x.numpy()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run() -> None:
        request.infer(share_outputs=True)

    def values() -> dict[str, Tensor]:
        run()
        outputs = (request.get_output_tensor(i).data.copy() for i in range(len(OUTPUTS[m.cell])))
        found = dict(zip(OUTPUTS[m.cell], map(torch.from_numpy, outputs), strict=True))
        return found | {"y": found["y"].squeeze(1)}

    return Contender(run, values, flops(m.cell, m.shape, m.mode))
