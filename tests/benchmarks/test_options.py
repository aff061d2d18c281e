"""The lines of the options' benchmark compare programs that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.options import checkpoint, masked, norms, packed, resets
from benchmarks.options.line import Figure, Line, Lines
from benchmarks.options.run import measured, text
from throughtime import cells

SMALL: dict[str, Callable[[], Lines]] = {
    "packed": lambda: iter([packed.line("GRU", 9, 5, 7, 1.0)]),
    "resets": lambda: iter([resets.line(cells.LSTM(), 9, 5, 7, t) for t in (True, False)]),
    "masked": lambda: masked.pair("LSTM", 9, 5, 7),
    "norms": lambda: iter([norms.line(cells.GRU(), 9, 5, 7)]),
    "checkpoint": lambda: checkpoint.of(cells.GRU(), 16, 3, 7),
}


@pytest.mark.parametrize("part", SMALL)
def test_both_programs_of_a_line_agree(part: str) -> None:
    for found in SMALL[part]():
        if isinstance(found, Line):
            assert found.parity.ok, found
            found.ours(), found.theirs()


def test_checkpoints_keep_every_fourth_state_and_less_than_half() -> None:
    kept = next(f for f in checkpoint.of(cells.LSTM(), 64, 3, 16) if isinstance(f, Figure))
    assert 0 < kept.value < 0.5


def test_a_red_line_has_no_ratio_and_is_not_met() -> None:
    line = packed.line("RNN", 5, 2, 3, 0.0)
    red: dict[str, Any] = measured(
        Line("made up", "torch.nn", line.ours, line.theirs, line.parity.__class__(
            False, "y", 1.0, 1e-5), 0.0), 0.01)  # fmt: skip
    assert "ratio" not in red and not red["met"] and "RED" in text(red)


def test_a_measured_line_tells_its_ratio_beside_the_bar() -> None:
    torch.manual_seed(0)
    row = measured(packed.line("RNN", 5, 2, 3, 1e9), 0.01)
    assert row["ratio"] > 0 and not row["met"] and "NOT MET" in text(row)
    assert f"{row['ratio']:.2f}" in text(row)
