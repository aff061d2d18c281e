"""Sums over the units of a row have the order that docs/compiler.md states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tolerance import TOLERANCE
from throughtime import Cell
from throughtime.backends.call import Call
from throughtime.scan import scan

SIZES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 37, 64, 100, 257)


class Total(Cell):
    """Every unit is the sum of all."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (a.h.sum(-1, keepdim=True) + 0 * s.h,)


class Greatest(Cell):
    """Every unit's share of the softmax, whose greatest value is taken away first."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.softmax(a.h, -1) + 0 * s.h,)


def _call(cell: Cell, x: torch.Tensor) -> Call:
    H = x.shape[-1]
    return Call(cell, H, x, ({"weight_ih": torch.eye(H, dtype=x.dtype)},))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("H", SIZES)
def test_a_sum_is_sixteen_strands_folded_by_halves(H: int, dtype: torch.dtype) -> None:
    x = torch.randn(1, 5, H, dtype=dtype) * torch.logspace(-3, 3, H, dtype=dtype)
    strands = np.zeros((5, 16), x.numpy().dtype)
    for unit in range(H):
        strands[:, unit % 16] += x[0, :, unit].numpy()
    while strands.shape[1] > 1:
        half = strands.shape[1] // 2
        strands = strands[:, :half] + strands[:, half:]
    y = scan(_call(Total(), x), "cpu").sequences[0]
    assert torch.equal(y[0, :, 0], torch.from_numpy(strands).expand(5, H))


@pytest.mark.parametrize("H", SIZES)
def test_a_softmax_of_large_numbers_is_no_infinity(H: int) -> None:
    """exp(300) has no place in float32; units behind the last, zeros, are not the greatest."""
    x = torch.randn(2, 3, H) - 300
    x[0] += 600
    y = scan(_call(Greatest(), x), "cpu").sequences[0]
    wanted = torch.softmax(x.double(), -1).unsqueeze(2)
    torch.testing.assert_close(y.double(), wanted, **TOLERANCE[torch.float32])


def test_not_a_number_stays_in_its_row() -> None:
    x = torch.randn(1, 4, 37)
    x[0, 2, 36] = torch.nan
    for cell in (Total(), Greatest()):
        y = scan(_call(cell, x), "cpu").sequences[0][0, :, 0]
        assert y[2].isnan().all() and y[[0, 1, 3]].isfinite().all()
