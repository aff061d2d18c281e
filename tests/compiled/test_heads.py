"""Cells whose heads have a few units each, and what heads may be written with."""

from __future__ import annotations

import pytest
import torch

from tests.compiled.calls import Sizes, check_call, random_call
from tests.compiled.headed import HEADED, SMALL, HeadedLSTM
from throughtime import Cell, Recurrent, check


@pytest.mark.parametrize("form", ["state", "masked_packed", "reset_lengths"])
@pytest.mark.parametrize("cell", SMALL, ids=repr)
def test_small_heads_are_right(cell: Cell, form: str) -> None:
    for dtype in (torch.float32, torch.float64):
        check_call(random_call(cell, dtype, Sizes(4, 3, 5, 19), form))


@pytest.mark.parametrize("cell", [HEADED[0], HEADED[3], SMALL[0]], ids=repr)
def test_cells_with_heads_keep_the_laws(cell: Cell) -> None:
    assert check(cell).uncompiled == ()


def test_a_stream_of_blocks_is_the_whole() -> None:
    layer = Recurrent(HeadedLSTM(4), 5, 36, return_state=False)
    stream, x = layer.stream(batch=3), torch.randn(4, 3, 5)
    assert torch.equal(torch.stack([stream(v) for v in x]), layer(x))


def test_a_block_that_overflows_leaves_its_neighbours_alone() -> None:
    layer = Recurrent(HeadedLSTM(4), 5, 36, return_state=False, backend="cpu")
    h = torch.zeros(1, 2, 36)
    h[..., 3] = torch.nan
    y = layer(torch.randn(1, 2, 5), ((h, torch.zeros(1, 2, 36)),))
    assert y[..., :9].isnan().all() and y[..., 9:].isfinite().all()
