"""The contenders: one file each; `build` gives one for a case by its name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.speed.contender import Contender
from benchmarks.speed.material import Material
from benchmarks.speed.peers import eager, onnx_runtime, open_vino, ours, peak, torch_nn

OURS = "throughtime"
RIVALS = ("torch.nn", "onnxruntime", "openvino", "eager loop")

PEERS: dict[str, Callable[[Material], Contender]] = {
    OURS: ours.contender,
    "our LSTM": ours.lstm,
    "torch.nn": torch_nn.contender,
    "onnxruntime": onnx_runtime.contender,
    "openvino": open_vino.contender,
    "eager loop": eager.contender,
    "peak": peak.contender,
}


def build(name: str, m: Material) -> Contender:
    """The contender `name`, ready to run."""
    return PEERS[name](m)
