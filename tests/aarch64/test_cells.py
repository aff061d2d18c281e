"""Every cell on an emulated AArch64 has the bits that it has on an x86-64 with AVX2.

Forward and backward, float32 and float64: the region that is called, its loops, tiles and cell are
code for AArch64, called with the argument block that a call there would have.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.aarch64.calls import BUILT_IN, cells_of
from tests.aarch64.guest import need_emulation
from tests.compiler.vectors import machine
from tests.house.source import ROOT

PARTS = 2
"""Processes that share the cells of the short form: each gets every second."""


def computed(folder: Path, where: str, level: str, first: int, step: int) -> dict[str, Tensor]:
    """What a process of its own computes, here or there."""
    out = folder / f"{where}.pt"
    command = [sys.executable, "-m", "tests.aarch64.calls", out, where, level, first, step]
    avx2 = {**os.environ, "THROUGHTIME_MACHINE": "avx2"}
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, env=avx2
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Tensor] = torch.load(out)
    return found


def differing(here: Tensor, there: Tensor) -> int:
    """How many numbers have other bits; not-a-number counts as one number."""
    whole = torch.int32 if here.element_size() == 4 else torch.int64
    other = here.contiguous().view(whole) != there.contiguous().view(whole)
    return int((other & ~(here.isnan() & there.isnan())).sum())


def check(folder: Path, level: str, first: int, step: int) -> None:
    need_emulation()
    machine("avx2")
    here, there = (computed(folder, where, level, first, step) for where in ("here", "guest"))
    assert here.keys() == there.keys()
    wrong = {name: n for name, v in here.items() if (n := differing(v, there[name]))}
    assert wrong == {}
    shares = [bool(v.any()) for v in here.values()]
    assert sum(shares) > 0.5 * len(shares), "most of what is compared must be other than zero"


@pytest.mark.parametrize("part", range(PARTS))
def test_every_cell_of_the_package(part: int, tmp_path: Path) -> None:
    check(tmp_path, "short", part, PARTS)


@pytest.mark.soak
@pytest.mark.parametrize("index", range(len(cells_of("long"))))
def test_every_cell_of_the_tests(index: int, tmp_path: Path) -> None:
    check(tmp_path, "long", index, 1 << 20)


def test_the_short_form_has_all_cells() -> None:
    assert {type(cell) for cell in cells_of("short")} == BUILT_IN


def test_a_differing_bit_is_seen() -> None:
    v = torch.tensor([1.0, 0.0, torch.nan])
    assert differing(v, v.clone()) == 0
    assert differing(v, torch.tensor([1.0, -0.0, torch.nan])) == 1
    assert differing(v, torch.tensor([1 + 2.0**-23, 0.0, 0.0])) == 2
