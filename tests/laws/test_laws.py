"""Every law over every cell and every option, random weights and odd sizes, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cells.table import CELLS
from throughtime import Cell, cells, check
from throughtime.check import maker
from throughtime.errors import LawError
from throughtime.laws import LAWS

OPTIONS: dict[str, dict[str, Any]] = {
    "bidirectional": {"bidirectional": True},
    "sum": {"bidirectional": True, "merge": "sum"},
    "mean": {"bidirectional": True, "merge": "mean"},
    "mul": {"bidirectional": True, "merge": "mul"},
    "own_merge": {"bidirectional": True, "merge": lambda f, b: f * 2 - b},
    "layers": {"num_layers": 3},
    "sizes": {"hidden_size": [4, 3], "bidirectional": True},
    "residual": {"num_layers": 2, "residual": True},
    "zoneout": {"zoneout": 0.3},
    "zoneout_of_one_state": {"zoneout": {"h": 0.4}},
    "learn_initial": {"learn_initial": True},
    "no_bias": {"bias": False},
    "dilation": {"dilation": 2},
    "dilations": {"num_layers": 2, "dilation": (1, 3), "bidirectional": True},
    "dropouts_in_eval": {
        "num_layers": 2, "dropout": 0.5, "recurrent_dropout": 0.5, "weight_dropout": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=repr)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_law_over_cells(cell: Cell, law: Any) -> None:
    torch.manual_seed(1)
    law(maker(cell, seed=1))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRUResetBefore()], ids=repr)
def test_law_over_options(cell: Cell, law: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    law(maker(cell, seed=2, **options))


@pytest.mark.soak
@pytest.mark.parametrize("cell", CELLS, ids=repr)
@pytest.mark.parametrize("options", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
def test_every_law_over_cells_options_and_seeds(cell: Cell, options: dict[str, Any]) -> None:
    if "weight_dropout" in options and not cell.layout.recurrent_gates:
        pytest.skip("a dropout of U needs a U")
    for seed in range(5):
        check(cell, seed=seed, **options)


class MeanOverRows(Cell):
    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h).cumsum(0),)


class LostGradient(Cell):
    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + (U.h @ s.h).detach()),)


class HiddenMemory(Cell):
    gates = ("h",)
    state = ("h",)
    calls = [0]

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        self.calls[0] += 1
        return (torch.tanh(a.h + U.h @ s.h) * (1 + 0.1 * self.calls[0]),)


@pytest.mark.parametrize(
    ("cell", "law"),
    [
        (MeanOverRows(), "rows_are_independent"),
        (LostGradient(), "gradients_are_right"),
        (HiddenMemory(), "split_is_whole"),
        (HiddenMemory(), "step_is_whole"),
    ],
    ids=lambda v: v if isinstance(v, str) else repr(v),
)
def test_a_broken_cell_is_told_its_law(cell: Cell, law: str) -> None:
    with pytest.raises(LawError, match=f"(?s)breaks .* laws:.*{law}"):
        check(cell)


def test_check_says_what_it_held() -> None:
    checked = check(cells.MGU(), seed=4)
    assert checked.laws == tuple(LAWS)
    assert str(checked).startswith(f"MGU(): {len(LAWS)} laws hold\n  gradients_are_right")


def test_every_cell_is_in_the_table() -> None:
    assert {type(cell) for cell in CELLS} == set(cells.available().values())
