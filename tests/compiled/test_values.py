"""Value and every gradient of compiled code equal the reference's, over cells, dtypes and sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.compiled.calls import (
    CELLS,
    FORMS,
    Sizes,
    check_call,
    every_cell,
    every_dtype,
    random_call,
)
from throughtime import Cell

SIZES = [
    Sizes(5, 2, 5, 16), Sizes(2, 7, 33, 17, 2), Sizes(33, 3, 1, 3), Sizes(1, 17, 5, 37),
    Sizes(5, 1, 33, 64, 2), Sizes(2, 3, 5, 100), Sizes(5, 7, 1, 130), Sizes(0, 3, 5, 17, 2),
    Sizes(33, 2, 33, 1, 2), Sizes(5, 17, 5, 64), Sizes(2, 0, 5, 3), Sizes(3, 2, 0, 5),
]  # fmt: skip


@every_dtype
@every_cell
def test_value_and_gradients_equal_the_reference(cell: Cell, dtype: torch.dtype) -> None:
    forms = itertools.cycle(FORMS)
    for _ in range(CELLS.index(cell) % len(FORMS)):  # each cell meets sizes in another form
        next(forms)
    for sizes in SIZES:
        check_call(random_call(cell, dtype, sizes, next(forms)))


@pytest.mark.soak
@every_dtype
@every_cell
def test_the_whole_product_of_sizes(cell: Cell, dtype: torch.dtype) -> None:
    H, I = (1, 3, 16, 17, 37, 64, 100, 130), (0, 1, 5, 33)
    B, T = (1, 2, 3, 7, 17), (0, 1, 2, 5, 33)
    chosen = itertools.islice(itertools.product(T, B, I, H, (1, 2), FORMS), 0, None, 29)
    for *numbers, form in chosen:
        check_call(random_call(cell, dtype, Sizes(*numbers), form))
