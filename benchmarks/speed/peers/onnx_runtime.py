"""onnxruntime on the case's ONNX model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.contender import Contender
from benchmarks.speed.figures import flops
from benchmarks.speed.material import Material
from benchmarks.speed.peers.onnx_model import OUTPUTS, onnx_model
from throughtime.errors import missing_extra


def contender(m: Material) -> Contender:
    """A session on torch's number of threads; input and outputs are bound, nothing is copied."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise missing_extra("onnxruntime", "bench") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(onnx_model(m), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    x = ort.OrtValue.ortvalue_from_numpy(m.x.numpy())
    binding.bind_ortvalue_input("x", x)
    names = OUTPUTS[m.cell]
    results = {}
    for output in session.get_outputs():
        results[output.name] = ort.OrtValue.ortvalue_from_numpy(np.empty(output.shape, np.float32))
        binding.bind_ortvalue_output(output.name, results[output.name])

    def run() -> None:
        session.run_with_iobinding(binding)

    def values() -> dict[str, Tensor]:
        run()
        found = {n: torch.from_numpy(results[n].numpy().copy()) for n in names}
        return found | {"y": found["y"].squeeze(1)}

    return Contender(run, values, flops(m.cell, m.shape, m.mode))
