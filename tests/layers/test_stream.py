"""stream(): one step at a time equals the formulas, and the whole sequence bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.cells.table import CELLS
from tests.layers.own import Decaying, decaying
from tests.layers.plain import agree, build, gru, lstm, plain, random
from throughtime import LSTM, Cell, LSTMCell, Recurrent, cells, compat, from_torch
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.stream import Stream


class Model(nn.Module):
    """Three layers, of which the middle one alone gives no state, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = build(cells.GRU(), 3, 4)
        self.second = build(cells.LSTM(), 4, [2, 5], return_state=False)
        self.parts = nn.ModuleList([build(cells.Elman(), 5, 3, dropout=0.5)])
        self.readout = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.first(x)
        assert y.shape[-1] == self.first.output_size
        return self.readout(self.parts[0](self.second(y))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_same_bits_as_the_whole(cell: Cell, dtype: torch.dtype) -> None:
    for width, rows in ((1, 1), (7, 3), (17, 1), (33, 5)):
        layer = Recurrent(
            cell, width, [width + 2, width], backend="reference", dtype=dtype, learn_initial=True
        )
        x = torch.randn(4, rows, width, dtype=dtype)
        inputs = {n: torch.rand(4, rows, 1, dtype=dtype) for n in cell.inputs}
        stream, (y, state) = layer.stream(rows), layer(x, inputs=inputs or None)
        given = [{n: v[t] for n, v in inputs.items()} or None for t in range(4)]
        steps = [stream(v, inputs=g) if g else stream(v) for v, g in zip(x, given, strict=True)]
        assert torch.equal(torch.stack(steps), y)
        for part, own in zip(state, stream.state[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(part, own, strict=True))


def test_a_layer_equals_the_formulas() -> None:
    layer = build(cells.LSTM(), 3, [4, 2], learn_initial=True, zoneout=0.2)
    x = random(5, 2, 3).detach()
    stream = layer.stream(batch=2)
    means = [tuple(torch.full((1, 5, 2, w), 0.2, dtype=x.dtype) for _ in "hc") for w in (4, 2)]
    y, last, _ = plain(layer, lstm, x, zones=means)
    agree(torch.stack([stream(v) for v in x]), y)
    agree(stream.state, (last,))
    assert not stream(x[0]).requires_grad


def test_a_model_with_its_readout() -> None:
    model = Model()
    x = random(6, 3, 3).detach()
    stream = Stream(model, batch=3)
    whole = copy.deepcopy(model).eval()(x)
    agree(torch.stack([stream(v) for v in x]), whole)
    assert model.training, "the model itself stays as it was"
    turned = nn.Sequential(
        build(cells.GRU(), 3, 4, batch_first=True, return_state=False), nn.Tanh(),
        build(cells.GRU(), 4, 2, batch_first=True),
    )  # fmt: skip
    stream = Stream(turned, batch=3)
    agree(torch.stack([stream(v) for v in x], 1), turned(x.transpose(0, 1))[0])


def test_a_drop_in() -> None:
    layer = LSTM(3, 4, 2, dtype=torch.float64)
    x = random(5, 2, 3).detach()
    stream = layer.stream(2)
    agree(torch.stack([stream(v) for v in x]), layer(x)[0])


def test_a_converted_model_and_torchs_own_class() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4)).double()
    x = random(5, 2, 3).detach()
    stream = Stream(from_torch(model), 2)
    agree(torch.stack([stream(v) for v in x]), model(x)[0])
    layer = compat.GRU(3, 4, dtype=torch.float64)
    stream = Stream(layer, 2)
    agree(torch.stack([stream(v) for v in x]), layer(x)[0])


def test_numpy_in_numpy_out() -> None:
    layer = build(cells.GRU(), 3, 4)
    x = random(5, 1, 3).detach()
    y = plain(layer, gru, x)[0]
    stream = layer.stream()
    data = x[:, 0].numpy()
    data.flags.writeable = False
    for t in range(4):
        found = stream(data[t])
        assert isinstance(found, np.ndarray) and found.shape == (4,)
        agree(torch.from_numpy(found), y[t, 0])
    flipped = stream(data[4, ::-1].copy()[::-1][None])
    agree(torch.from_numpy(flipped), y[4])


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array], ids=["list", "tensor", "array"])
def test_reset_of_rows(kind: Any) -> None:
    layer = build(cells.LSTM(), 3, 4, learn_initial=True)
    x = random(4, 3, 3).detach()
    for rows in ([1], [True, False, True], [], [0, 2, 2]):
        stream = layer.stream(3)
        first = [stream(v) for v in x[:2]]
        stream.reset(kind(rows) if rows else kind([]))
        chosen = [b for b, r in enumerate(rows) if r] if rows and rows[0] is True else rows
        reset = torch.zeros(4, 3, dtype=torch.bool)
        reset[2, chosen] = True
        agree(
            torch.stack(first + [stream(v) for v in x[2:]]), plain(layer, lstm, x, reset=reset)[0]
        )
    stream.reset()
    agree(torch.stack([stream(v) for v in x]), plain(layer, lstm, x)[0])
    stream.reset(1)
    agree(stream.state[0][0][0][0, 1], layer.initial_h_l0)


def test_state_saved_and_restored() -> None:
    model = Model()
    x = random(6, 2, 3).detach()
    stream = Stream(model, 2)
    for v in x[:3]:
        stream(v)
    saved = stream.state
    expected = [stream(v) for v in x[3:]]
    for v in saved[0][0]:
        assert not any(v is w for w in stream.state[0][0]), "a copy, which no step changes"
    other = Stream(model, 2)
    other.state = copy.deepcopy(saved)
    agree([other(v) for v in x[3:]], expected)
    other.state = torch.utils._pytree.tree_map(lambda v: v.requires_grad_(), saved)
    assert not other(x[3]).requires_grad


def test_weights_are_frozen_until_refresh() -> None:
    layer = build(cells.GRU(), 3, 4)
    before = copy.deepcopy(layer)
    x = random(4, 1, 3).detach()
    stream = layer.stream()
    with torch.no_grad():
        for v in layer.parameters():
            v.mul_(-1)
    first = torch.stack([stream(v) for v in x[:2]])
    y, state, _ = plain(before, gru, x[:2])
    agree(first, y)
    stream.refresh()
    agree(torch.stack([stream(v) for v in x[2:]]), plain(layer, gru, x[2:], state=state)[0])


def test_direct_inputs() -> None:
    layer = build(Decaying(), 3, 4)
    x = random(4, 2, 3).detach()
    inputs = {"dt": torch.rand(4, 2, 1).double(), "gain": torch.rand(4, 2, 4).double()}
    y = plain(layer, decaying, x, inputs=inputs)[0]
    stream, arrays = layer.stream(2), layer.stream(2)
    for t in range(4):
        given = {n: v[t] for n, v in inputs.items()}
        agree(stream(x[t], inputs=given), y[t])
        found = arrays(x[t].numpy(), inputs={n: v.numpy() for n, v in given.items()})
        agree(torch.from_numpy(found), y[t])
    with pytest.raises(OptionError, match="inputs must hold dt, gain"):
        stream(x[0])


REFUSED: dict[str, tuple[Any, str]] = {
    "two directions": (lambda: build(cells.GRU(), 3, 4, bidirectional=True),
                       "a bidirectional layer needs the whole .* build it with bidirectional=Fa"),
    "dilated": (lambda: nn.Sequential(build(cells.GRU(), 3, 4, dilation=2)),
                "a dilated layer keeps no old states, so it has no stream; use dilation=1"),
    "no layer": (lambda: nn.Sequential(nn.Linear(3, 4)), "a stream needs a model with a recurrent"),
    "two layouts": (lambda: nn.Sequential(build(cells.GRU(), 3, 4, batch_first=True),
                                          build(cells.GRU(), 4, 4)), "must agree on batch_first"),
    "one layer twice": (lambda: nn.Sequential(*[build(cells.GRU(), 3, 3)] * 2),
                        "a layer is in the model twice, .* use a copy.deepcopy of it"),
    "torch's layer": (lambda: nn.Sequential(build(cells.GRU(), 3, 3), nn.LSTM(3, 3)),
                      r"1 is a torch.nn LSTM, .* from zero .*throughtime.from_torch\(model\)"),
    "torch's layer alone": (lambda: nn.GRU(3, 3), "the model is a torch.nn GRU, which would start"),
    "torch's cell": (lambda: nn.ModuleDict({"a": build(cells.GRU(), 3, 3), "b": nn.GRUCell(3, 3)}),
                     "b is a GRUCell, one step whose state .* throughtime.RNN, LSTM or GRU$"),
    "our cell": (lambda: nn.Sequential(build(cells.GRU(), 3, 3), LSTMCell(3, 3)),
                 "1 is a LSTMCell, one step whose state a stream does not carry; use a layer in"),
    "our cell as torch's": (lambda: compat.RNNCell(3, 3), "the model is a RNNCell, one step whose"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_models_without_a_stream(kind: str) -> None:
    make, text = REFUSED[kind]
    with pytest.raises(OptionError, match=text):
        Stream(make())


class Calling(nn.Module):
    def __init__(self, calls: int, **given: Any) -> None:
        super().__init__()
        self.layer, self.calls, self.given = build(cells.GRU(), 3, 3), calls, given

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls):
            x = self.layer(x, **self.given)[0]
        return x


def test_models_that_a_stream_cannot_follow() -> None:
    x = random(1, 3).detach()
    for calls in (0, 2):
        with pytest.raises(OptionError, match="calls each of its recurrent layers once a step"):
            Stream(Calling(calls))(x)
    with pytest.raises(OptionError, match="carries the state .* must not give them one"):
        Stream(Calling(1, state=()))(x)


@pytest.mark.parametrize("batch", [0, -1, True, 1.0, "1"])
def test_bad_batch(batch: Any) -> None:
    with pytest.raises(OptionError, match="^batch must be a positive integer, got"):
        build(cells.GRU(), 3, 4).stream(batch)


def test_bad_steps() -> None:
    stream = build(cells.GRU(), 3, 4).stream(2)
    for shape in ((3,), (3, 3), (1, 2, 3)):
        with pytest.raises(ShapeError, match=r"^one step of this stream is \(2, I\), .* for x$"):
            stream(random(*shape))
    with pytest.raises(ShapeError, match="the last dimension of x must be input_size 3, got 4"):
        stream(random(2, 4))
    with pytest.raises(TypeError, match="^x must be a tensor or a NumPy array, got list$"):
        stream([[1.0, 2.0, 3.0]] * 2)
    text = "^x must be torch.float64 as the weights, got torch.float32; convert it with "
    with pytest.raises(TypeError, match=text + r"\.astype\(numpy\.float64\)$"):
        stream(np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match=text + r"\.to\(torch\.float64\)$"):
        stream(torch.zeros(2, 3))
    assert torch.equal(stream.state[0][0][0], torch.zeros(1, 2, 4)), "no step was made"


def test_an_array_of_another_precision() -> None:
    """What was given as an array is told how arrays are converted, wherever it reaches a layer."""
    cure = r"convert it with \.astype\(numpy\.float32\)$"
    for layer in (Recurrent(cells.GRU(), 3, 4), LSTM(3, 4), nn.Sequential(LSTM(3, 4))):
        with pytest.raises(TypeError, match=f"^x must be torch.float32 .* torch.float64; {cure}"):
            Stream(layer)(np.zeros((1, 3)))
    arrays = {"dt": np.zeros((1, 1), np.float32), "gain": np.zeros((1, 4))}
    with pytest.raises(TypeError, match=f"^input gain must be torch.float32 .*float64; {cure}"):
        Recurrent(Decaying(), 3, 4).stream()(np.zeros((1, 3), np.float32), inputs=arrays)
    half = Recurrent(cells.GRU(), 3, 4, dtype=torch.bfloat16).stream()
    with pytest.raises(TypeError, match="give a tensor, since NumPy has no bfloat16$"):
        half(np.zeros((1, 3), np.float32))


def test_repr_names_the_model() -> None:
    layer = Recurrent(cells.GRU(), 3, 4)
    assert repr(layer.stream(2)) == "Stream(Recurrent(GRU(), 3, 4), batch=2)"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([2], r"^rows must be from 0 to 1, got 2$"),
        ([-1], r"^rows must be from 0 to 1, got -1$"),
        ([True], r"^rows as a bool mask must be \(2,\), got \(1,\)$"),
        ([0.5], r"^rows must be numbers of rows or a bool mask, got torch.float32$"),
        ("first", r"^rows must be numbers of rows or a bool mask, got 'first'$"),
    ],
)
def test_bad_rows(rows: Any, text: str) -> None:
    with pytest.raises((ShapeError, TypeError), match=text):
        build(cells.GRU(), 3, 4).stream(2).reset(rows)


def test_bad_state() -> None:
    stream = build(cells.LSTM(), 3, 4).stream(2)
    (((h, c),),) = stream.state
    for state, text in (
        ((), "one entry for each of 1 recurrent layers, got 0$"),
        (None, "one entry for each of 1 recurrent layers, got NoneType$"),
        ((None,), "must be its tensors, got None$"),
        ((((h,),),), r"a tuple over \(h, c\); layer 0 has tuple of 1$"),
        ((((h, c[:, :1]),),), r"state c of layer 0 must be \(1, 2, 4\), got a tensor \(1, 1, 4\)"),
        ((((h, c.float()),),), "state c of layer 0 must be torch.float64 as the weights, got"),
    ):
        with pytest.raises((ShapeError, TypeError), match=text):
            stream.state = state
