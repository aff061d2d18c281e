"""A cell's key means that cell for ever, and equal cells are one object in every thread."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from throughtime import cells
from throughtime.cells.cell import Cell


def _scaled(by: float) -> Callable[[Tensor], Tensor]:
    return lambda v: v * by


def test_a_key_is_never_used_for_another_cell() -> None:
    first: Cell = cells.Elman(_scaled(1.0))
    key = first.key
    del first
    gc.collect()
    second: Cell = cells.Elman(_scaled(-3.0))
    assert second.key != key
    assert cells.LSTM().key == "throughtime.cells.lstm.LSTM()"


def test_equal_cells_are_one_object_in_every_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        for distance in range(50, 80):
            made = list(pool.map(lambda d: cells.Skip(distance=d), [distance] * 8))
            assert len({id(cell) for cell in made}) == 1
