"""Numbers of a cell are given to its code: cells that differ in them alone share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.tolerance import TOLERANCE
from throughtime import Cell, Recurrent, cells
from throughtime.compiler.llvm import library
from throughtime.compiler.plan import make_plan
from throughtime.compiler.runtime import jit

T, B, I, H = 6, 3, 4, 20
NUMBERS = (0.9, 0.1234, 1e-3, 0.5, 1.0, 0.0, -2.5, 1e40, float("inf"))


class Leaky(Cell):
    """s_t = k s + (1 - k) tanh(a + U s), each number once more in the derivative."""

    gates = ("h",)
    state = ("h",)

    def __init__(self, k: float) -> None:
        self.k = k

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Tensor]:
        return (self.k * s.h + (1 - self.k) * torch.tanh(a.h + U.h @ s.h),)


class Wide(Cell):
    """Of two phases, and over the units of a row."""

    gates = ("h",)
    state = ("h",)
    products = {"m": ("hidden_size", "hidden_size")}

    def __init__(self, k: float) -> None:
        self.k = k

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Tensor]:
        v = torch.tanh(a.h + self.k * (U.h @ s.h))
        v = v / (v.square().mean(-1, keepdim=True) + self.k)
        return (torch.sigmoid(U.m @ v / (3 + self.k)),)


class Heads(Cell):
    """Of four heads, at the sizes of its layer."""

    gates = ("h",)
    state = ("h",)

    def __init__(self, k: float) -> None:
        self.k = k

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Tensor]:
        v = (a.h + U.h @ s.h).unflatten(-1, (4, -1))
        return (torch.tanh(v - self.k * v.mean(-1, keepdim=True)).flatten(-2),)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in a process that has loaded nothing."""
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "_loaded", {})
    monkeypatch.setattr(library, "_READY", {})
    return tmp_path / "objects"


def results(layer: Recurrent, x: Tensor) -> list[Tensor]:
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", [Leaky, Wide, Heads])
def test_values_are_those_of_the_cells_own_number(
    cell: type[Leaky | Wide | Heads], dtype: torch.dtype
) -> None:
    for k in NUMBERS[:6]:  # the last three of them are held by code, not given to it
        layer = Recurrent(cell(k), I, H, return_state=False, dtype=dtype, backend="cpu")
        x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
        found = results(layer, x)
        with torch.no_grad():
            steps = torch.stack([layer.stream(B)(v) for v in x[:1]])
        layer.backend = "reference"
        for one, other in zip(found, results(layer, x), strict=True):
            assert_close(one, other, **TOLERANCE[dtype])
        assert_close(steps, found[0][:1], **TOLERANCE[dtype])


def test_many_cells_of_a_class_share_one_code(folder: Path) -> None:
    def call(k: float) -> None:
        layer = Recurrent(Leaky(k), I, H, return_state=False)
        layer(torch.randn(T, B, I)).sum().backward()
        layer.stream(B)(torch.randn(B, I))

    call(0.3)
    loaded, kept = len(jit._loaded), len(list(folder.iterdir()))
    for n in range(40):
        call(0.31 + n / 101)
    assert (len(jit._loaded), len(list(folder.iterdir()))) == (loaded, kept)


def test_a_number_that_changes_the_equations_is_another_code() -> None:
    """Of 0.5 and 1 - 0.5 there is one node, and of 1 - 1.0 another; they share nothing."""
    keys = {make_plan(Leaky(k)).key for k in NUMBERS}
    assert len(keys) == 4
    assert len({make_plan(Leaky(k)).graph.key for k in NUMBERS}) == len(NUMBERS)


def test_numbers_are_words_of_their_kind() -> None:
    found = make_plan(Leaky(1e40))
    assert found.numbers(4) == [0x7F800000, 0xFF800000]  # beyond float32: infinities
    assert found.numbers(8) == [0x483D6329F1C35CA5, 0xC83D6329F1C35CA5 - (1 << 64)]


def test_numbers_of_equations_stay_in_code() -> None:
    for cell in (cells.LSTM(), cells.GRU(), cells.Elman()):
        found = make_plan(cell)
        assert found.numbers(4) == []
