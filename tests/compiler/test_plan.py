"""What the plan of a cell takes and refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import layer_norm

from throughtime import Cell, cells
from throughtime.compiler import sweeps
from throughtime.compiler.plan import make_plan, why_unplanned
from throughtime.errors import BackendError


def test_a_plan_reads_as_its_phases_and_what_it_saves() -> None:
    assert str(make_plan(cells.Elman())) == (
        "phase 1: products with x and the old state, then the pointwise part\n"
        "  t3 = W.h x + b + U.h h + b\n"
        "saved: nothing; also read: h_t"
    )
    assert str(make_plan(cells.MGU())) == (
        "phase 1: products with x and the old state, then the pointwise part\n"
        "  t3 = W.f x + b + U.f h + b\n"
        "phase 2: products with t6, then the pointwise part\n"
        "  t8 = W.n x + b + U.n t6 + b\n"
        "saved: t4 = sigmoid(t3), t9 = tanh(t8); also read: h_(t-1)"
    )
    assert str(make_plan(cells.LSTM())).endswith("t16 = sigmoid(t15), t17 = s.c")


def test_widths_that_no_matrix_joins_are_parts_of_their_own() -> None:
    found = make_plan(cells.LSTMProjected(3))
    assert found.widths.names == ("hidden_size", "proj_size")
    assert found.widths.states == ("proj_size", "hidden_size")
    assert found.fused == () and found.early == found.phases
    assert str(found).splitlines()[5:7] == [
        "phase 2: products with t22, then the pointwise part",
        "  t23 = U.hr t22",
    ]


class OfOneNumber(Cell):
    """The mean over one number is that number."""

    gates = ("h",)
    state = ("h",)
    inputs = {"gap": 1}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h) * a.gap.mean(-1, keepdim=True),)


def test_a_sum_over_one_number_is_that_number() -> None:
    found = make_plan(OfOneNumber())
    assert not found.rowwise


class OfVector(Cell):
    """A mean over the numbers of a per-unit vector."""

    gates = ("h",)
    state = ("h",)
    vectors = {"gain": 0.5}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h) * p.gain.mean(-1, keepdim=True),)


def test_what_has_no_rule_is_told_with_its_line() -> None:
    told = why_unplanned(OfVector())
    assert told is not None
    assert told.startswith("mean has no rule, which keeps OfVector uncompiled: ")
    assert told.endswith("return (torch.tanh(a.h + U.h @ s.h) * p.gain.mean(-1, keepdim=True),)")
    with pytest.raises(BackendError, match="mean has no rule"):
        make_plan(OfVector())


class NormedProjection(Cell):
    """A row of gates is normalised, and so is what is projected, which has a width of its own."""

    gates = ("g",)
    state = {"h": 2, "c": "hidden_size"}
    products = {"hr": ("h", "c")}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        c = torch.tanh(layer_norm(a.g + U.g @ s.h, s.c.shape[-1:]))
        h = U.hr @ c
        return torch.tanh(layer_norm(h, h.shape[-1:])), c


def test_walks_go_over_the_units_of_each_width() -> None:
    found = make_plan(NormedProjection())
    assert found.rowwise and not found.fused
    walks = sweeps.sweeps_forward(found, True)
    over = [{found.widths.of[i] for i in w.ends if w.reductions} for w in walks]
    assert over == [{"hidden_size", "2"}, {"hidden_size", "2"}, set()]
    to_vector = sweeps.sweeps_to_vector(found, 0)
    assert [{found.widths.of[i] for i in w.ends} for w in to_vector] == [{"hidden_size"}] * 3


class Spread(Cell):
    """A product's single unit stands before all units of a row."""

    gates = ("g",)
    state = ("h",)
    products = {"one": (1, "h")}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.g + U.one @ s.h),)


def test_one_unit_over_others_is_a_number_before_the_walk() -> None:
    """Its gradient is a sum over the units, which backward adds up in a walk of its own."""
    found = make_plan(Spread())
    assert found.rowwise
    (walk,) = sweeps.sweeps_forward(found, True)
    assert [found.graph.nodes[i].op for i in walk.numbers] == ["U"]
    assert [len(w.reductions) for w in sweeps.sweeps_backward(found)] == [1, 0]


def test_a_normalised_cell_saves_what_is_centred_and_one_number_a_row_beside_it() -> None:
    found = make_plan(cells.LSTMLayerNorm())
    nodes = found.graph.nodes
    assert [nodes[i].op for i in found.saved_lines] == ["s", "sub", "sub", "sub", "sub"]
    assert [nodes[i].op for i in found.saved_numbers] == [*["rsqrt"] * 4, "div", "rsqrt"]
    assert (found.saved_size(16), found.saved_size(4)) == (6, 7)
    assert found.last == () and len(found.early) == 1


def test_walks_over_a_row_sum_first_and_leave_what_is_dear() -> None:
    """Mean and variance of the gates, then of c; backward two sums for c, then two for each gate
    at once, but that o needs nothing of c."""
    found = make_plan(cells.LSTMLayerNorm())
    forward, back = sweeps.sweeps_forward(found, True), sweeps.sweeps_backward(found)
    assert [len(w.reductions) for w in forward] == [4, 4, 1, 1, 0]
    assert [len(w.reductions) for w in back] == [4, 6, 0]
    nodes = found.graph.nodes
    assert [nodes[i].op for w in forward for i in w.lines] == ["add"]  # c
    activations = [nodes[i].op for i in back[0].lines if i < found.graph.forward]
    assert activations == ["sigmoid", "sigmoid", "tanh", "sigmoid", "tanh"]
    assert sweeps.lines_forward(found) == 1
    assert sweeps.lines_backward(make_plan(cells.LSTM())) == 0
