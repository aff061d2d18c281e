"""Streams whose step is one call of compiled code: same bits, same promises, and why not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.compiled.calls import CELLS
from throughtime import GRU, LSTM, Cell, Readout, Recurrent, Stream, cells
from throughtime.cell.layout import find_fitting_size
from throughtime.errors import OptionError, ShapeError

ONE_CALL = "compiled: a step of the whole model is one call"


def steps(stream: Stream, x: Any) -> Tensor:
    return torch.stack([torch.as_tensor(stream(v)) for v in x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_bits_of_the_whole_sequence_on_compiled_code(cell: Cell, dtype: torch.dtype) -> None:
    for width, rows in ((1, 1), (16, 1), (33, 1), (40, 2), (7, 13)):
        width, wider = (
            find_fitting_size(cell, width),
            find_fitting_size(cell, width + (not cell.layout.inputs)),
        )
        layer = Recurrent(
            cell, 3, [width, wider], return_state=False, dtype=dtype,
            learn_initial=True, backend="cpu", zoneout=0.2 if width % 2 else 0.0,
        )  # fmt: skip
        layer.eval()
        with torch.no_grad():
            for value in layer.parameters():
                value.normal_(0, 0.3)
        widths = {n: cell.width(cell.inputs[n], width) for n in cell.layout.inputs}
        inputs = {n: torch.rand(5, rows, w, dtype=dtype) for n, w in widths.items()}
        stream, x = layer.stream(rows), torch.randn(5, rows, 3, dtype=dtype)
        assert stream.explain() == ONE_CALL
        given = [{"inputs": {n: v[t] for n, v in inputs.items()}} for t in range(5)]
        y = [stream(v, **(g if inputs else {})) for v, g in zip(x, given, strict=True)]
        assert torch.equal(torch.stack(y), layer(x, inputs=inputs or None))


def test_direct_inputs_of_every_kind() -> None:
    layer = Recurrent(cells.GRUD(), 3, 4, return_state=False)
    x, inputs = torch.randn(4, 1, 3), {n: torch.rand(4, 1, 4) for n in cells.GRUD().inputs}
    inputs = {n: v[..., : layer.cell.width(layer.cell.inputs[n], 4)] for n, v in inputs.items()}
    stream, y = layer.stream(), layer(x, inputs=inputs)
    one = [{n: v[t] for n, v in inputs.items()} for t in range(4)]
    found = [stream(x[0], inputs=one[0])]
    flat = {n: v[0].numpy() for n, v in one[1].items()}
    found.append(torch.from_numpy(stream(x[1, 0].numpy(), inputs=flat)).unsqueeze(0))
    before = stream.state
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (OptionError, {}), (TypeError, {"inputs": 3.0}),
        (ShapeError, {"inputs": {n: v.expand(2, -1) for n, v in one[2].items()}}),
    ]  # fmt: skip
    for error, given in wrong:
        with pytest.raises(error):
            stream(x[2], **given)
    assert all(torch.equal(v, w) for v, w in zip(before[0][0], stream.state[0][0], strict=True))
    found += [stream(x[t], inputs=one[t]) for t in (2, 3)]
    assert torch.equal(torch.stack(found), y)


def _turned(v: np.ndarray) -> np.ndarray:
    return v[::-1].copy()[::-1]


def _between_others(v: np.ndarray) -> np.ndarray:
    """Numbers with a byte behind each, as those of a structured array."""
    found = np.zeros(v.shape, [("number", v.dtype), ("byte", np.uint8)])["number"]
    found[...] = v
    return found


def _read_only(v: np.ndarray) -> np.ndarray:
    return np.broadcast_to(v, v.shape)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("laid", [_turned, _between_others, _read_only])
def test_direct_inputs_however_arrays_lie(laid: Any, rows: int) -> None:
    layer = Recurrent(cells.GRUD(), 3, 4, return_state=False)
    widths = {n: layer.cell.width(w, 4) for n, w in layer.cell.inputs.items()}
    x, inputs = torch.randn(4, rows, 3), {n: torch.rand(4, rows, w) for n, w in widths.items()}
    stream, y = layer.stream(rows), layer(x, inputs=inputs)
    for t in range(4):
        given = {n: laid(v[t].numpy()) for n, v in inputs.items()}
        assert torch.equal(torch.from_numpy(stream(laid(x[t].numpy()), inputs=given)), y[t])


def test_a_stack_with_its_readout_equals_the_whole() -> None:
    model = nn.Sequential(nn.Linear(3, 5), LSTM(5, 20, 2), Readout(20, 6)).double()
    for rows in (1, 4):
        stream = Stream(model, rows)
        assert stream.explain() == ONE_CALL
        x = torch.randn(6, rows, 3, dtype=torch.float64)
        y, _ = model(x)
        torch.testing.assert_close(steps(stream, x), y, rtol=1e-12, atol=1e-12)
        stream.reset()
        found = steps(stream, x.numpy())
        torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.LSTMProjected(proj_size=5)], ids=repr)
def test_residuals_and_dropouts_in_eval_mode(cell: Cell) -> None:
    options: dict[str, Any] = {"num_layers": 3, "residual": True, "return_state": False}
    for rows, H in ((1, 20), (3, 33)):
        layer = Recurrent(cell, 3, H, dropout=0.5, backend="cpu", **options)
        x = torch.randn(6, rows, 3)
        stream = layer.stream(rows)
        assert stream.explain() == ONE_CALL
        assert torch.equal(steps(stream, x), layer.eval()(x))
        model = nn.Sequential(layer, nn.Dropout(0.5), nn.Linear(layer.output_size, 2)).double()
        assert Stream(model, rows).explain() == ONE_CALL
        found = steps(Stream(model, rows), x.double())
        torch.testing.assert_close(found, model.eval()(x.double()), rtol=1e-12, atol=1e-12)


def test_a_result_is_the_callers() -> None:
    for rows, shape in ((1, (3,)), (1, (1, 3)), (2, (2, 3))):
        stream = GRU(3, 4).stream(rows)
        for x in (torch.randn(shape), np.ones(shape, np.float32)):
            first = stream(x)
            kept = copy.deepcopy(first)
            assert (torch.as_tensor(stream(x)) != torch.as_tensor(kept)).any()
            assert (torch.as_tensor(first) == torch.as_tensor(kept)).all()
            assert tuple(first.shape) == (*shape[:-1], 4)


def test_steps_of_both_ways_share_one_state() -> None:
    layer = GRU(3, 4)
    x = torch.randn(6, 1, 3)
    stream = layer.stream()
    found = [stream(x[0])]
    with torch.autocast("cpu"):  # goes layer by layer, on the reference
        found.append(stream(x[1]).float())
    found += [stream(v) for v in x[2:]]
    torch.testing.assert_close(torch.stack(found), layer(x)[0], rtol=0.05, atol=0.05)
    before = stream.state
    with pytest.raises(TypeError, match="x must be torch.float32 as the weights"):
        stream(np.ones(3))
    torch.testing.assert_close(stream.state, before, rtol=0, atol=0)


def test_state_reset_and_refresh_reach_compiled_steps() -> None:
    layer = LSTM(3, 4, 2).double()
    x = torch.randn(8, 3, 3, dtype=torch.float64)
    stream = layer.stream(3)
    steps(stream, x[:2])
    saved = stream.state
    after = steps(stream, x[2:4])
    stream.state = saved
    assert torch.equal(steps(stream, x[2:4]), after)
    stream.reset([1])
    expected = layer(x[4:6, 1:2])[0]
    assert torch.equal(steps(stream, x[4:6])[:, 1:2], expected)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(0.5)
    state = tuple(torch.cat([s[k] for s in stream.state[0]]) for k in (0, 1))
    stream.refresh()
    assert torch.equal(steps(stream, x[6:]), layer(x[6:], state)[0])


def test_a_copy_and_a_saved_stream_go_on_alone() -> None:
    layer = GRU(3, 4)
    x = torch.randn(4, 1, 3)
    stream = layer.stream()
    steps(stream, x[:2])
    others = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
    expected = layer(x)[0][2:]
    for one in (stream, *others):
        assert torch.equal(steps(one, x[2:]), expected)
        assert one.explain() == ONE_CALL


class Own(Recurrent):
    """A layer of a user's own."""


def _turned_round(x: Tensor) -> Tensor:
    return x.flip(-1)


def _hooked() -> nn.Module:
    model = nn.Sequential(GRU(3, 4))
    model.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(GRU(3, 4), nn.Tanh()), "holds a Tanh"),
        (nn.Sequential(GRU(3, 4), Readout(4, 2, activation=_turned_round)), "flip has no rule"),
        (Own(cells.GRU(), 3, 4), "Own is changed in your own code"),
        (Recurrent(cells.GRU(), 3, 4, backend="reference"), "backend='reference'"),
        (nn.Sequential(Recurrent(cells.GRUD(), 3, 4)), "Sequential reads direct inputs"),
        (nn.Sequential(GRU(3, 4), Readout(4, 2, dtype=torch.float64)), "different dtypes"),
        (nn.Sequential(GRU(3, 4), Readout(5, 2)), "takes 5 numbers and the one before it gives 4"),
        (nn.Sequential(GRU(3, 4), nn.Linear(4, 2)), "gives its state stands before a part"),
        (_hooked(), "has hooks"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_goes_layer_by_layer_says_why(model: nn.Module, reason: str) -> None:
    said = Stream(model).explain()
    assert said.startswith("layer by layer, since ") and reason in said
