"""Inside the region denormals count as zero; behind it the caller's mode is as it was."""

from __future__ import annotations

import time

import pytest
import torch

from throughtime import Recurrent, cells


def _has_denormals() -> bool:
    """Whether torch keeps a product too small for a normal number, on every thread."""
    small = torch.full((100_000,), 1e-30)
    return bool((small * 1e-10 > 0).all())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_mode_comes_back(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throughtime.backends.cpu.sizes.PARALLEL_US", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert _has_denormals()
        layer = Recurrent(cells.GRU(), 3, 40, backend="cpu", return_state=False)
        layer(torch.randn(5, 6, 3)).sum().backward()
        assert _has_denormals()
    finally:
        torch.set_num_threads(before)


def test_a_state_that_fades_is_carried_as_zero() -> None:
    """A linear cell that halves its state at every step: below the normal numbers it is zero."""
    layer = Recurrent(cells.IndRNN("identity"), 1, 16, backend="cpu", bias=False)
    with torch.no_grad():
        layer.u_l0.fill_(0.5)
    x = torch.zeros(200, 1, 1)
    y, _ = layer(x, ((torch.ones(1, 1, 16),),))
    smallest = torch.finfo(torch.float32).tiny
    assert y[100].min() > 0 and not ((y > 0) & (y < smallest)).any() and not y[-1].any()


def test_fading_costs_no_more_than_living() -> None:
    """Denormal operands take a processor a hundred times as long; flushed ones do not."""
    layer = Recurrent(cells.LSTM(), 8, 64, backend="cpu", return_state=False)
    x = torch.randn(300, 4, 8)

    def cost() -> float:
        times = []
        for _ in range(7):
            begun = time.process_time()
            layer(x).sum().backward()
            times.append(time.process_time() - begun)
        return min(times)

    healthy = cost()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(1e-20)
    assert cost() < 3 * healthy
