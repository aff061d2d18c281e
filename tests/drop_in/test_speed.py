"""A drop-in is never slower than what it replaces: by calls with "torch", by time with "auto"."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import throughtime
from tests.drop_in.pairs import KINDS

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
SHAPES = [(1, 1, 8), (1, 10, 16), (4, 20, 32)]


def pair(kind: str, size: int, layers: int = 1, backend: str = "auto") -> tuple[Any, Any]:
    """torch's module and ours with its weights."""
    options = {} if kind in CELLS else {"num_layers": layers}
    theirs = getattr(nn, kind)(size, size, **options)
    ours = getattr(throughtime, kind)(size, size, backend=backend, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def calls_made(function: Callable[[], Any]) -> int:
    """How many calls of Python functions it takes; those of C functions cost little beside them."""
    made = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal made
        made += event == "call"

    function()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return made


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_to_torchs_kernel_is_no_longer_than_torchs(
    kind: str, layers: int, given: bool
) -> None:
    """Calls are counted, since time on a shared machine is no law; the kernel is the same one."""
    theirs, ours = pair(kind, 8, layers, "torch")
    x, h = torch.randn(1, 1, 8), torch.zeros(layers, 1, 8)
    hx = None if not given else (h, h) if kind == "LSTM" else h
    assert calls_made(lambda: ours(x, hx)) <= calls_made(lambda: theirs(x, hx))


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_forward_time_is_at_most_torchs(kind: str, shape: tuple[int, int, int]) -> None:
    B, T, H = shape
    theirs, ours = pair(kind, H)
    x = torch.randn(B, H) if kind in CELLS else torch.randn(T, B, H)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ratio = time_ratio(lambda: ours(x), lambda: theirs(x))
        assert ratio <= 1.05, (kind, shape, grad, ratio)


def time_ratio(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """Median over pairs of runs, taken in turns."""
    ratios = []
    for i in range(400):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        a, b = seconds(first), seconds(second)
        ratios.append(a / b if i % 2 else b / a)
    return statistics.median(ratios)


def seconds(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    for _ in range(10):
        function()
    return time.perf_counter() - begun
