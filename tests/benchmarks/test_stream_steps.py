"""Contenders of the stream's benchmark compute the same steps."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from benchmarks.stream.run import contenders, difference  # noqa: E402


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_contenders_agree_over_steps_with_carried_state(cell: str, layers: int) -> None:
    assert difference(contenders(cell, 20, layers)) < 1e-6
