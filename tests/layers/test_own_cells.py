"""Cells of one's own in a layer: direct inputs, products of any width, states of unlike width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from tests.layers.own import Decaying, LowRank, decaying, low_rank
from tests.layers.plain import agree, build, plain, random
from throughtime import Cell, Recurrent, cells
from throughtime.errors import OptionError, ShapeError

RAGGED = [4, 0, 5, 2]


def direct(T: int, B: int, H: int) -> dict[str, Tensor]:
    return {"dt": random(T, B, 1), "gain": random(T, B, H)}


@pytest.mark.parametrize("directions", [1, 2])
def test_direct_inputs(directions: int) -> None:
    layer = build(Decaying(), 3, 4, num_layers=2, bidirectional=directions == 2)
    x, inputs, reset = random(5, 4, 3), direct(5, 4, 4), torch.rand(5, 4) < 0.3
    leaves = [x, *inputs.values(), *layer.parameters()]
    for options in ({}, {"lengths": RAGGED}, {"lengths": RAGGED, "reset": reset}):
        y, last, traces = plain(layer, decaying, x, inputs=inputs, **options)
        agree(layer(x, inputs=inputs, **options), (y, last), leaves)
        agree([list(v.values()) for v in layer.trace(x, inputs=inputs, **options)], traces)


def test_direct_inputs_in_every_layout() -> None:
    layer = build(Decaying(), 3, 4, batch_first=True)
    x, inputs = random(5, 2, 3), direct(5, 2, 4)
    y, last, _ = plain(layer, decaying, x, inputs=inputs)
    turned = {n: v.transpose(0, 1) for n, v in inputs.items()}
    agree(layer(x.transpose(0, 1), inputs=turned), (y.transpose(0, 1), last))
    alone = {n: v[:, 1] for n, v in inputs.items()}
    agree(layer(x[:, 1], inputs=alone)[0], y[:, 1])


def test_direct_inputs_of_a_dilated_layer() -> None:
    layer = build(Decaying(), 3, 4, dilation=2, bidirectional=True)
    x, inputs = random(5, 3, 3), direct(5, 3, 4)
    y, last, _ = plain(layer, decaying, x, inputs=inputs, lengths=[5, 2, 0], dilations=[2])
    agree(layer(x, inputs=inputs, lengths=[5, 2, 0]), (y, last), [x, *inputs.values()])


def test_what_lies_behind_an_end_of_a_direct_input_reaches_nothing() -> None:
    layer = build(Decaying(), 3, 4)
    x, inputs = random(4, 2, 3), direct(4, 2, 4)
    clean = layer(x, inputs=inputs, lengths=[4, 1])
    spoilt = {n: v.detach().clone() for n, v in inputs.items()}
    for v in spoilt.values():
        v[1:, 1] = torch.nan
    agree(layer(x, inputs=spoilt, lengths=[4, 1]), clean, [x, *layer.parameters()])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "^inputs must hold dt, gain for this cell, got nothing$"),
        ({"dt": 1}, "^inputs must hold dt, gain for this cell, got dt$"),
        ({"dt": 1, "gain": 4, "more": 1}, "for this cell, got dt, gain, more$"),
        ({"dt": 2, "gain": 4}, r"^input dt must be \(5, 2, 1\) as x, got a tensor \(5, 2, 2\)$"),
        ({"dt": 1, "gain": 1}, r"^input gain must be \(5, 2, 4\) as x, got a tensor \(5, 2, 1\)$"),
    ],
)
def test_bad_direct_inputs(given: Any, text: str) -> None:
    layer = build(Decaying(), 3, 4)
    inputs = None if given is None else {n: random(5, 2, w) for n, w in given.items()}
    with pytest.raises((OptionError, ShapeError), match=text):
        layer(random(5, 2, 3), inputs=inputs)


def test_bad_direct_inputs_of_the_wrong_kind() -> None:
    layer, x = build(Decaying(), 3, 4), random(5, 2, 3)
    good = direct(5, 2, 4)
    with pytest.raises(TypeError, match="^inputs must map names to tensors, got Tensor$"):
        layer(x, inputs=good["dt"])
    with pytest.raises(TypeError, match="^input dt must be torch.float64 .*, got torch.float32;"):
        layer(x, inputs={**good, "dt": good["dt"].float()})
    with pytest.raises(ShapeError, match=r"^input dt must be \(5, 2, 1\) as x, got 0.5$"):
        layer(x, inputs={**good, "dt": 0.5})
    with pytest.raises(ShapeError, match="^input dt must be on cpu .*, got meta;"):
        layer(x, inputs={**good, "dt": good["dt"].to("meta")})
    with pytest.raises(OptionError, match="^inputs must hold nothing for this cell, got dt$"):
        build(cells.GRU(), 3, 4)(x, inputs={"dt": good["dt"]})
    with pytest.raises(OptionError, match="a PackedSequence holds .* no direct inputs"):
        layer(pack_sequence([x[:, 0]]), inputs=good)
    with pytest.raises(OptionError, match="inputs must hold dt, gain for this cell, got nothing"):
        layer(pack_sequence([x[:, 0]]))


def test_an_input_as_wide_as_the_layer_needs_layers_of_one_width() -> None:
    with pytest.raises(OptionError, match=r"every layer reads the input gain, .* got \(4, 5\)"):
        Recurrent(Decaying(), 3, [4, 5])


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("options", [{}, {"lengths": RAGGED}], ids=["full", "ragged"])
def test_products_and_states_of_other_widths(rank: int, options: Any) -> None:
    layer = build(LowRank(rank), 2, [4, 5], bidirectional=True, learn_initial=True)
    assert layer.widths == ((4, rank), (5, rank))
    assert {n: tuple(v.shape) for n, v in layer.named_parameters() if n.endswith("_l1")} == {
        "weight_ih_l1": (5, 8), "bias_ih_l1": (5,), "weight_A_l1": (5, rank),
        "weight_B_l1": (rank, 5), "weight_C_l1": (3, rank), "weight_D_l1": (5, 3),
        "initial_h_l1": (5,), "initial_slow_l1": (rank,),
    }  # fmt: skip
    x = random(5, 4, 2)
    y, last, traces = plain(layer, low_rank, x, **options)
    agree(layer(x, **options), (y, last), [x, *layer.parameters()])
    agree([list(v.values()) for v in layer.trace(x, **options)], traces)


class Counter(Cell):
    """It reads no input and has no parameter."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (s.h + 1,)


def test_a_cell_without_parameters() -> None:
    """x alone decides the dtype, and both who run it agree."""
    for backend, dtype in (("cpu", None), ("reference", torch.float64), ("cpu", torch.float64)):
        layer = Recurrent(Counter(), 3, 2, backend=backend)
        assert list(layer.parameters()) == []
        y, ((last,),) = layer(torch.randn(3, 2, 3, dtype=dtype), lengths=[3, 1])
        assert y[:, :, 0].T.tolist() == [[1, 2, 3], [1, 0, 0]]
        assert last.tolist() == [[[3, 3], [1, 1]]]
        assert y.dtype == last.dtype == (dtype or torch.float32)
    auto = Recurrent(Counter(), 3, 2)
    x = torch.randn(3, 2, 3, requires_grad=True)
    assert not torch.autograd.grad(auto(x)[0].sum(), x)[0].any()
    assert auto.stream()(torch.randn(3)).tolist() == [1, 1]
    assert auto.explain() == "layer 0: cpu"
