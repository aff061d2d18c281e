"""Streams on bfloat16 weights: the bits of float32 weights of the same values, and `out`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.cells.table import CELLS
from throughtime import GRU, LSTM, Cell, Readout, Recurrent, Stream, cells
from throughtime.errors import OptionError, ShapeError

NARROW = torch.bfloat16


def steps(stream: Stream, x: Any) -> Tensor:
    return torch.stack([torch.as_tensor(stream(v)) for v in x])


def rounded(model: nn.Module) -> nn.Module:
    """A copy whose matrices are bfloat16 numbers, rounded by hand to the nearest, ties to even."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for v in found.parameters():
            if v.dim() == 2:
                bits = v.numpy().view(np.uint32).astype(np.uint64)
                bits += 0x7FFF + ((bits >> 16) & 1)
                v.copy_(torch.from_numpy((bits & 0xFFFF0000).astype(np.uint32).view(np.float32)))
    return found


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_bits_of_float32_weights_of_the_same_values(cell: Cell) -> None:
    if cell.layout.inputs:
        pytest.skip("a linear part behind the layer takes no direct inputs")
    differs = False
    for I, H, rows in ((3, 16, 1), (1, 33, 1), (7, 1, 2), (4, 20, 13)):
        layer = Recurrent(cell, I, [H, H + 1], return_state=False)
        model = nn.Sequential(layer, nn.Linear(layer.output_size, 5))
        with torch.no_grad():
            for v in model.parameters():
                v.normal_(0, 0.3)
        x = torch.randn(5, rows, I)
        narrow, wide = Stream(model, rows, weights=NARROW), Stream(rounded(model), rows)
        assert narrow.explain() == wide.explain()
        expected = steps(wide, x)
        assert torch.equal(steps(narrow, x), expected)
        differs |= not torch.equal(steps(Stream(model, rows), x), expected)
    assert differs


def test_rounding_costs_what_is_stated() -> None:
    torch.manual_seed(3)
    for kind in (GRU, LSTM):
        layer, x = kind(16, 128, 2), torch.randn(200, 1, 16)
        wide, narrow = (steps(layer.stream(weights=w), x) for w in (None, NARROW))
        error = (wide - narrow).abs().max() / wide.abs().max()
        assert 1e-5 < error < 1e-2


def test_only_matrices_are_rounded() -> None:
    layer = Recurrent(cells.LSTMPeephole(), 2, 3, return_state=False)
    fine = 1 + 2**-12
    with torch.no_grad():
        for v in layer.parameters():
            v.fill_(0.0 if v.dim() == 2 else fine)
    x = torch.randn(4, 1, 2)
    assert torch.equal(steps(layer.stream(weights=NARROW), x), layer(x))


def test_it_stays_through_refresh_copies_and_files() -> None:
    layer = GRU(3, 20)
    stream = layer.stream(weights=NARROW)
    x = torch.randn(6, 1, 3)
    steps(stream, x[:2])
    with torch.no_grad():
        layer.weight_hh_l0.mul_(0.7)
    stream.refresh()
    others = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
    judge = Stream(rounded(layer))
    judge.state = stream.state
    expected = steps(judge, x[2:])
    for one in (stream, *others):
        assert torch.equal(steps(one, x[2:]), expected)


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(OptionError, match="weights must be torch.bfloat16 or None, got torch.flo"):
        GRU(2, 3).stream(weights=torch.float16)
    with pytest.raises(OptionError, match="needs a float32 model, got torch.float64 in weight_ih"):
        GRU(2, 3).double().stream(weights=NARROW)
    model = nn.Sequential(GRU(2, 3), Readout(3, 2))
    torch.nn.utils.parametrizations.weight_norm(model[1].network)
    with pytest.raises(OptionError, match="1.network computes its own anew at each call; remove"):
        Stream(model, weights=NARROW)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_a_result_goes_where_it_is_wanted(kind: Any, backend: str) -> None:
    layer = Recurrent(cells.GRU(), 3, 4, return_state=False, backend=backend)
    for rows, shape, wide in ((1, (3,), (4,)), (1, (1, 3), (1, 4)), (2, (2, 3), (2, 4))):
        one, other = layer.stream(rows), layer.stream(rows)
        for _ in range(3):
            x, out = kind(torch.randn(shape)), kind(torch.zeros(wide))
            assert one(x, out=out) is out
            assert (out == other(x)).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    "out", [np.zeros(4, np.float32), torch.zeros(1, 4), torch.zeros(4, dtype=torch.float64), [0.0]]
)
def test_a_wrong_place_is_told_and_no_step_is_taken(out: Any, backend: str) -> None:
    stream = Recurrent(cells.GRU(), 3, 4, return_state=False, backend=backend).stream()
    x = torch.randn(3)
    stream(x)
    before = stream.state
    with pytest.raises(ShapeError, match=r"out must be a Tensor \(4,\) torch.float32 as the resu"):
        stream(x, out=out)
    torch.testing.assert_close(stream.state, before, rtol=0, atol=0)
