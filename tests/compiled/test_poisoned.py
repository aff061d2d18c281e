"""Fresh memory full of NaN reaches nothing: not a result, not a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils import deterministic

from tests.compiled.calls import (
    CELLS,
    FLOATS,
    FORMS,
    Sizes,
    assert_same,
    gradients,
    leaves,
    random_call,
    random_gradients,
    results,
)
from throughtime import Cell
from throughtime.backends.call import Call
from throughtime.backends.cpu import sizes as cutting

SIZES = [
    Sizes(5, 3, 5, 17, 2), Sizes(1, 1, 1, 1), Sizes(0, 2, 3, 5, 2), Sizes(9, 13, 33, 37),
    Sizes(3, 7, 1, 130), Sizes(4, 2, 5, 16, 2),
]  # fmt: skip


@contextmanager
def poisoned() -> Iterator[None]:
    """Every tensor that torch leaves uninitialised is filled: floats with NaN, bytes with 255.

    Four bytes of 255, and eight, are NaN too.
    """
    fills = deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        deterministic.fill_uninitialized_memory = fills


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cutting, "PARALLEL_US", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_fresh_memory_is_nan() -> None:
    with poisoned():
        for fresh in (torch.empty(99), torch.ones(1).new_empty(7, 3), torch.empty(5).double()):
            assert fresh.isnan().all()
        arena = torch.empty(64, dtype=torch.uint8)
        assert arena.view(torch.float32).isnan().all() and arena.view(torch.float64).isnan().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_poison_reaches_nothing(cell: Cell, dtype: torch.dtype, two_threads: None) -> None:
    first = CELLS.index(cell)
    for i, sizes in enumerate(SIZES):
        call = random_call(cell, dtype, sizes, list(FORMS)[(first + i) % len(FORMS)])
        d = random_gradients(results(call))
        clean = _everything(call, d)
        with poisoned():
            found = _everything(call, d)
        assert all(v.isfinite().all() for v in clean)
        assert_same(found, clean, str(sizes))


def _everything(call: Call, d: dict[str, Tensor | None]) -> list[Tensor]:
    """Results and gradients of training, and results without a gradient."""
    found = results(call)
    grads = gradients(found, leaves(call), d)
    with torch.no_grad():
        return [*found.values(), *grads.values(), *results(call).values()]
