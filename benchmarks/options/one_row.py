"""One row over 100 steps, inference, beside onnxruntime."""

from __future__ import annotations

from benchmarks.options.line import Line, Lines
from benchmarks.speed.grid import shape
from benchmarks.speed.material import material
from benchmarks.speed.parity import compare
from benchmarks.speed.peers import OURS, build

T = 100


def lines() -> Lines:
    """GRU and LSTM."""
    for H in (256, 512):
        for cell in ("GRU", "LSTM"):
            yield line(cell, T, H)


def line(cell: str, T: int, H: int) -> Line:
    """One cell; torch.nn is the judge."""
    m = material(cell, shape(1, T, H), "inference", "cpu")
    ours, theirs, judge = (build(name, m) for name in (OURS, "onnxruntime", "torch.nn"))
    assert judge.values is not None and ours.values is not None
    agreed = compare(judge.values(), ours.values())
    return Line(f"one row, {cell}, T {T} H {H}", "onnxruntime", ours.run, theirs.run, agreed, 1.3)
