"""Denormal numbers are flushed inside compiled code, and outside everything is as before."""

from __future__ import annotations

import time

import pytest
import torch

from tests.compiled.calls import Sizes, leaves, random_call, results
from throughtime import Recurrent, cells
from throughtime.backends.cpu import schedule as cutting


def _tiny(dtype: torch.dtype) -> torch.Tensor:
    """Half of the smallest normal number, on one thread and on many."""
    smallest = torch.full((1 << 16,), torch.finfo(dtype).tiny, dtype=dtype)
    return smallest * 0.5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_mode_is_restored(
    dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PARALLEL_US", "STEP_US"):
        monkeypatch.setattr(cutting, name, 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.set_flush_denormal(False)
        wanted = _tiny(dtype)
        assert (wanted != 0).all()
        call = random_call(cells.LSTM(), dtype, Sizes(3, 4, 2, 5))
        found = results(call)
        assert torch.equal(_tiny(dtype), wanted)
        torch.autograd.grad(found["y"].sum(), list(leaves(call).values()))
        assert torch.equal(_tiny(dtype), wanted)
        torch.set_flush_denormal(True)  # of this thread; compiled code must not switch it off
        results(call)
        assert torch.full((9,), torch.finfo(dtype).tiny, dtype=dtype).mul(0.5).eq(0).all()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def _processor_time(layer: Recurrent, x: torch.Tensor) -> float:
    """Of a training step, the least of several: others only make it slower."""
    found = []
    for _ in range(7):
        start = time.process_time()
        y, _ = layer(x)
        y[-1].sum().backward()
        found.append(time.process_time() - start)
    return min(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_vanishing_sequence_takes_as_long_as_another(dtype: torch.dtype) -> None:
    """Gradients and states become denormal after few steps, where arithmetic costs 100 times."""
    layer = Recurrent(cells.LSTM(), 4, 32, backend="cpu", dtype=dtype)
    x = torch.randn(1500, 4, 4, dtype=dtype)
    healthy = _processor_time(layer, x)
    with torch.no_grad():
        for v in layer.parameters():
            v.mul_(1e-6)
    x = x * 1e-300 if dtype == torch.float64 else x * 1e-36
    assert _processor_time(layer, x) <= 3 * healthy
