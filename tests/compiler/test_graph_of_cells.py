"""The graph of every cell: value and derivative equal autograd's through its own step."""

from __future__ import annotations

import pytest

from tests.cells.table import CELLS
from tests.compiler.interpret import Given, assert_equal_to_autograd
from throughtime.cells import Cell


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_value_and_gradients_equal_autograd(cell: Cell) -> None:
    assert_equal_to_autograd(cell, Given(cell, hidden_size=5, rows=3))
