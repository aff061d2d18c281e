"""Contenders of the stream's benchmark compute the same steps."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from benchmarks.stream.run import NARROW, TOLERANCE, contenders, difference  # noqa: E402


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_contenders_agree_over_steps_with_carried_state(cell: str, layers: int) -> None:
    found = difference(contenders(cell, 20, layers))
    assert max(found[name] for name in ("ours", "torch.nn", "onnxruntime")) < 1e-6
    assert 1e-6 < found[NARROW] < TOLERANCE[NARROW]
