"""Every law over every cell and every option, random weights and odd sizes, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cells.table import CELLS
from tests.layers.own import Decaying
from throughtime import Cell, Recurrent, cells, check
from throughtime.errors import LawError, OptionError
from throughtime.laws import LAWS, backends_agree, maker

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

OPTED: list[Cell] = [
    cells.LSTM(), cells.GRUResetBefore(), cells.LSTMProjected(2), Decaying(),
]  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=repr)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_law_over_cells(cell: Cell, law: Any) -> None:
    torch.manual_seed(1)
    law(maker(cell, seed=1))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("cell", OPTED, ids=repr)
def test_law_over_options(cell: Cell, law: Any, options: dict[str, Any]) -> None:
    if cell.inputs and "hidden_size" in options:
        pytest.skip("all layers read the same inputs, so they have one size")
    torch.manual_seed(2)
    law(maker(cell, seed=2, **options))


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_backends_agree_with_the_masks_of_training(cell: Cell) -> None:
    share = 0.4 if cell.layout.recurrent_gates else 0.0
    make = maker(cell, seed=5, bidirectional=True, recurrent_dropout=share, zoneout=0.3)
    backends_agree(lambda **forced: make(**forced).train())


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


class RowsMixed(Decaying):
    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.n + a.z + U.z @ s.h) * a.gain + (a.dt * p.rate).cumsum(0) + U.n @ s.h,)


class LostInput(Decaying):
    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        h = torch.tanh(a.n + a.z + U.z @ s.h + U.n @ s.h)
        return (h * a.gain.detach() * p.rate + a.dt,)


@pytest.mark.parametrize(
    ("cell", "law"),
    [
        (MeanOverRows(), "rows_are_independent"),
        (LostGradient(), "gradients_are_right"),
        (HiddenMemory(), "split_is_whole"),
        (HiddenMemory(), "step_is_whole"),
        (RowsMixed(), "rows_are_independent"),
        (LostInput(), "gradients_are_right"),
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


@pytest.mark.parametrize(
    "option",
    [
        {"batch_first": True},
        {"return_state": False},
        {"backend": "torch"},
        {"device": "meta"},
        {"dtype": torch.float32},
    ],
    ids=repr,
)
def test_options_that_change_no_equation_are_not_blamed_on_the_cell(option: Any) -> None:
    ((name, value),) = option.items()
    with pytest.raises(
        OptionError, match=f"^check takes options .* leave {name} out, got {value!r}$"
    ):
        check(cells.GRU(), **option)


def test_check_of_a_cell_with_direct_inputs() -> None:
    checked = check(Decaying(), seed=3)
    assert checked.laws == tuple(LAWS)
    assert str(checked).endswith(
        "\n  not held: packed, since a PackedSequence takes no direct inputs"
    )
    assert check(cells.GRU()).skipped == ()


@pytest.mark.parametrize(("cell", "name"), [(LostGradient(), "x"), (LostInput(), "gain")])
def test_a_wrong_gradient_is_told_in_a_few_lines(cell: Cell, name: str) -> None:
    with pytest.raises(
        LawError, match=rf"mismatch for output 0 with respect to {name},\n"
    ) as caught:
        check(cell)
    told = str(caught.value)
    assert "numerical:" in told and "analytical:" in told
    assert len(told.splitlines()) == 4 and "tensor(" not in told


def test_every_cell_is_in_the_table() -> None:
    assert {type(cell) for cell in CELLS} == set(cells.available().values())


@pytest.mark.parametrize("seed", range(3))
def test_states_that_are_only_handed_on_pass_the_laws(seed: int) -> None:
    """More old states than the laws have steps: some results then depend on nothing."""
    assert check(cells.Skip(distance=7), seed=seed, num_layers=2).laws == tuple(LAWS)


class SingularAtZero(Cell):
    gates = ("h",)
    state = ("h",)
    inputs = {"gap": 1}
    vectors = {"k": 0.5}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h / a.gap + p.k * torch.log(a.gap)),)


def test_padding_reaches_no_gradient_where_an_equation_is_singular() -> None:
    layer = Recurrent(SingularAtZero(), 2, 3, dtype=torch.float64)
    x, gap = torch.randn(4, 3, 2).double(), torch.rand(4, 3, 1).double() + 0.1
    gap[2:, 0], x[2:, 0] = 0.0, torch.nan
    state = ((torch.randn(1, 3, 3).double(),),)
    state[0][0][0, 2] = torch.nan  # the state of a row of length 0
    y, last = layer(x, state, lengths=[2, 4, 0], inputs={"gap": gap})
    alone, _ = layer(x[:2, :1], ((state[0][0][:, :1],),), inputs={"gap": gap[:2, :1]})
    torch.testing.assert_close(y[:2, :1], alone)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert last[0][0][0, 2].isnan().all()
