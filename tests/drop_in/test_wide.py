"""Layers whose weights no second-level cache holds: panels take turns, the next one is fetched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime

KINDS = (nn.RNN, nn.GRU, nn.LSTM)
T, B, I, H = 5, 9, 261, 389  # U in float64 takes 1.2 MB and more; no size fills its vectors


def _results(layer: Any, x: Tensor) -> list[Tensor]:
    """Outputs, last states and all gradients."""
    y, state = layer(x)
    states = state if isinstance(state, tuple) else (state,)
    wanted = [x, *layer.parameters()]
    loss = y.square().sum() + sum(v.sum() for v in states)
    return [y, *states, *torch.autograd.grad(loss, wanted)]


def _layers(kind: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    torch.manual_seed(5)
    theirs = kind(I, H, bidirectional=True, dtype=dtype)
    return theirs, throughtime.from_torch(theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, B, 14])
def test_values_and_gradients_are_torchs(kind: Any, rows: int) -> None:
    theirs, ours = _layers(kind, torch.float64)
    x = torch.randn(T, rows, I, dtype=torch.float64, requires_grad=True)
    for a, b in zip(_results(ours, x), _results(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_those_of_one_thread(kind: Any, dtype: torch.dtype) -> None:
    _, ours = _layers(kind, dtype)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    number, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(_results(ours, x))
    finally:
        torch.set_num_threads(number)
    for some in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(some, found[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_has_its_bits_alone_and_cut_in_time(kind: Any, dtype: torch.dtype) -> None:
    _, ours = _layers(kind, dtype)
    one = throughtime.from_torch(kind(I, H, dtype=dtype))
    x = torch.randn(T, B, I, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(ours(x[:, 3:4])[0], ours(x)[0][:, 3:4])
        whole = one(x)[0]
        first, state = one(x[:2])
        assert torch.equal(torch.cat([first, one(x[2:], state)[0]]), whole)
