"""What the plan of a cell takes and refuses."""

from __future__ import annotations

from typing import Any

import torch

from throughtime import Cell, Recurrent, cells
from throughtime.compiler.llvm.maths import OPS
from throughtime.compiler.plan import ROWWISE, UNCODED, Plan, plan
from throughtime.compiler.rules import FLAT, RULES


class Wide(Cell):
    """A direct input as wide as a memory that is no hidden_size wide."""

    gates = ("g",)
    state = {"h": "hidden_size", "m": 5}
    inputs = {"v": "m"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        return torch.tanh(a.g + U.g @ s.h), 0.5 * s.m + a.v


def test_every_operation_has_code_or_is_refused() -> None:
    constants = {"number", "full", "width"}
    assert (set(RULES) | FLAT) - OPS - ROWWISE - constants == UNCODED


def test_an_operation_without_code_is_refused_with_its_line() -> None:
    reason = plan(cells.Elman(torch.sin))
    assert isinstance(reason, str)
    assert reason.startswith("Elman computes sin, which has no vector code: ")
    assert "elman.py" in reason
    layer = Recurrent(cells.Elman(torch.sin), 2, 3)
    assert layer.explain().startswith("layer 0: reference\n  not cpu: Elman computes sin")
    assert layer(torch.randn(4, 2, 2))[0].shape == (4, 2, 3)


def test_a_plan_reads_as_its_phases_and_what_it_saves() -> None:
    assert str(plan(cells.Elman())) == (
        "phase 1: products with x and the old state, then the pointwise part\n"
        "  t3 = W.h x + b + U.h h + b\n"
        "saved: nothing; read beside it: h_t"
    )
    assert str(plan(cells.MGU())) == (
        "phase 1: products with x and the old state, then the pointwise part\n"
        "  t3 = W.f x + b + U.f h + b\n"
        "phase 2: products with t6, then the pointwise part\n"
        "  t8 = W.n x + b + U.n t6 + b\n"
        "saved: t4 = sigmoid(t3), t9 = tanh(t8); read beside it: h_(t-1)"
    )
    assert str(plan(cells.LSTM())).endswith("t16 = sigmoid(t15), t17 = s.c")


def test_a_direct_input_of_a_width_of_its_own_is_refused() -> None:
    assert plan(Wide()) == "Wide reads the direct input v, whose width is not 1 or hidden_size"


def test_widths_that_no_matrix_joins_are_parts_of_their_own() -> None:
    found = plan(cells.LSTMProjected(3))
    assert isinstance(found, Plan)
    assert found.widths.names == ("hidden_size", "proj_size")
    assert found.widths.states == ("proj_size", "hidden_size")
    assert found.fused == () and found.early == found.phases
    assert str(found).splitlines()[5:7] == [
        "phase 2: products with t22, then the pointwise part",
        "  t23 = U.hr t22",
    ]
