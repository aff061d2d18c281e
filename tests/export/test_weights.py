"""Weights in fewer bytes: what each number becomes, and how many bytes that takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from throughtime import LSTM
from throughtime.errors import OptionError
from throughtime.export import to_c, to_object
from throughtime.export.llvm.object_files import list_sections
from throughtime.export.program import SCALE_SHIFT, SCALE_START, narrow_int8


def matrix(lines: int, columns: int, seed: int = 0) -> Any:
    """Lines of many sizes, one of them zero."""
    draw = np.random.default_rng(seed)
    sizes = 10.0 ** draw.uniform(-4, 3, (lines, 1))
    sizes[lines // 2] = 0
    return (draw.normal(size=(lines, columns)) * sizes).astype(np.float32)


def scales(code: Any) -> Any:
    return ((code.astype(np.uint32) << SCALE_SHIFT) + SCALE_START).view(np.float32)


@pytest.mark.parametrize("columns", [1, 3, 64])
def test_each_number_is_the_nearest_and_a_lines_largest_the_next_away_from_zero(
    columns: int,
) -> None:
    v = matrix(400, columns)
    whole, code = narrow_int8(v)
    scale = scales(code)[:, None].astype(np.float64)
    error = whole * scale - v
    largest = np.abs(v) == np.abs(v).max(1, keepdims=True)
    assert (np.abs(error) <= np.where(largest, 1, 0.5) * scale).all()
    assert (error[largest] * v[largest] >= 0).all() and np.abs(whole).max() == 127
    least = np.abs(v).max(1) / 127  # no line of int8 has a finer one
    filled = least > 0
    assert (scale[filled, 0] >= least[filled]).all()
    assert (scale[filled, 0] <= least[filled] * 1.125).all()


def test_a_rounded_matrix_is_found_again_also_in_parts() -> None:
    v = matrix(999, 5)
    whole, code = narrow_int8(v)
    again = narrow_int8(whole * scales(code)[:, None])
    assert np.array_equal(again.whole, whole) and np.array_equal(again.code, code)
    part = narrow_int8(v[17:40])
    assert np.array_equal(part.whole, whole[17:40]) and np.array_equal(part.code, code[17:40])


def test_scales_reach_from_tiny_to_large(tmp_path: Path) -> None:
    assert scales(np.arange(256, dtype=np.uint8))[[0, 8, 9, 255]].tolist() == [
        2.0**-24, 2.0**-23, 1.125 * 2.0**-23, 240.0,
    ]  # fmt: skip
    whole, code = narrow_int8(np.array([[127 * 240.0], [1e-9]], np.float32))
    assert whole.tolist() == [[127], [1]] and code.tolist() == [255, 0]
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight[1] = -30481
    said = "weights of int8 must lie between -30480 and 30480, got one of size 30481 in weight; use"
    with pytest.raises(OptionError, match=said):
        to_c(layer, tmp_path, weights="int8")


@pytest.mark.parametrize(
    ("inputs", "hidden", "share"),
    [(16, 16, 0.288), (32, 32, 0.27), (1, 64, 0.27), (64, 64, 0.26), (128, 128, 0.255)],
)
def test_int8_takes_its_share_of_float32(
    inputs: int, hidden: int, share: float, tmp_path: Path
) -> None:
    """A byte a weight, one a line of each matrix, four a bias; float32 has four a number."""
    model, lines = LSTM(inputs, hidden), 4 * hidden
    matrices = lines * (inputs + hidden)
    wide, narrow = (to_c(model, tmp_path, weights=w).weight_bytes for w in ("float32", "int8"))
    assert wide == 4 * (matrices + lines) and narrow == matrices + 2 * lines + 4 * lines
    assert narrow / wide <= share
    held: dict[str, int] = {}
    for weights in ("float32", "int8"):
        done = to_object(model, tmp_path, target="x86-64-v3", weights=weights)
        parts = list_sections((tmp_path / "net.o").read_bytes())
        held[weights] = sum(len(p.data) for p in parts if p.flags & 2 and not p.flags & 4)
        others = held[weights] - done.weight_bytes  # of functions of units, and the line about it
        assert done.weight_bytes == (wide if weights == "float32" else narrow) and others < 512
