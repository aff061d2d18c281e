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
from tests.compiled.fresh import full_of_nan, memory_from
from throughtime import Cell, cells
from throughtime.backends.call import Call
from throughtime.backends.cpu import schedule as cutting

SIZES = [
    Sizes(5, 3, 5, 17, 2), Sizes(1, 1, 1, 1), Sizes(0, 2, 3, 5, 2), Sizes(9, 13, 33, 37),
    Sizes(3, 7, 1, 130), Sizes(4, 2, 5, 16, 2),
]  # fmt: skip


@contextmanager
def poisoned() -> Iterator[None]:
    """Every tensor that torch leaves as it was, and all memory of the backend, is full of NaN."""
    fills = deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        with memory_from(full_of_nan):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        deterministic.fill_uninitialized_memory = fills


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PARALLEL_US", "STEP_US"):
        monkeypatch.setattr(cutting, name, 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_fresh_memory_is_nan() -> None:
    with poisoned():
        for fresh in (torch.empty(99), torch.ones(1).new_empty(7, 3), torch.empty(5).double()):
            assert fresh.isnan().all()
        block = torch.from_numpy(full_of_nan(64))
        assert block.view(torch.float32).isnan().all() and block.view(torch.float64).isnan().all()


def test_large_memory_is_poisoned_too() -> None:
    call = random_call(cells.LSTM(), torch.float32, Sizes(33, 17, 5, 100, 2), "state")
    d = random_gradients(results(call))
    clean = _everything(call, d)
    with poisoned():
        assert_same(_everything(call, d), clean)


def test_what_one_graph_keeps_another_does_not_use() -> None:
    calls = [random_call(cells.LSTM(), torch.float32, Sizes(33, 17, 5, 100)) for _ in range(3)]
    ds = [random_gradients(results(call)) for call in calls]
    alone = [gradients(results(c), leaves(c), d) for c, d in zip(calls, ds, strict=True)]
    for _ in range(2):
        graphs = [results(call) for call in calls]
        for i in (1, 0, 2, 1):
            found = gradients(graphs[i], leaves(calls[i]), ds[i], retain_graph=i == 1)
            assert_same(list(found.values()), list(alone[i].values()), f"graph {i}")


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
        if not _is_finite(clean):  # zoneout parts exponential gates from what keeps them small
            assert not _is_finite(_everything(call, d, "reference"))
            continue
        assert_same(found, clean, str(sizes))


def _is_finite(values: list[Tensor]) -> bool:
    return all(bool(v.isfinite().all()) for v in values)


def _everything(call: Call, d: dict[str, Tensor | None], backend: str = "cpu") -> list[Tensor]:
    """Results and gradients of training, and results without a gradient."""
    found = results(call, backend)
    grads = gradients(found, leaves(call), d)
    with torch.no_grad():
        return [*found.values(), *grads.values(), *results(call, backend).values()]
