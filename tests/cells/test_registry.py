"""A cell's key means that cell for ever, and equal cells are one object in every thread."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tests.house.source import ROOT
from throughtime import cells
from throughtime.cell.contract import Cell


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


def _doubled(v: Tensor) -> Tensor:
    return 2 * v


def _local_class() -> Cell:
    class Local(cells.LSTM):
        pass

    return Local()


ELSEWHERE = """
import sys
from tests.cells.test_registry import MADE
from throughtime.cell import find_cell
from throughtime.errors import CellError

made = [make() for make in MADE]
for key in sys.argv[1:]:
    try:
        print(made.index(find_cell(key)))
    except CellError:
        print("none")
"""
MADE: list[Callable[[], Cell]] = [
    lambda: cells.Skip(3),
    lambda: cells.Elman(_doubled),
    lambda: cells.Elman(torch.sin),
    lambda: cells.Elman(_scaled(2.0)),
    lambda: cells.Elman(lambda v: -v),
    _local_class,
]


def test_only_what_modules_hold_has_a_key_that_another_process_knows() -> None:
    """An exported program names its cell; a closure of that name may be another one there."""
    made = [make() for make in MADE]
    command = [sys.executable, "-c", ELSEWHERE, *(cell.key for cell in made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1", "2", "none", "none", "none"]


def test_equal_cells_are_one_object_in_every_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        for distance in range(50, 80):
            made = list(pool.map(lambda d: cells.Skip(distance=d), [distance] * 8))
            assert len({id(cell) for cell in made}) == 1
