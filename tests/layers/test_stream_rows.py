"""Rows of a stream that step, join, leave, are saved and restored one by one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.layers.own import Decaying
from tests.layers.test_stream_parts import Skipping, layer
from throughtime import GRU, LSTM, Recurrent, Stream, cells
from throughtime.errors import OptionError, ShapeError

MODELS: dict[str, Any] = {
    "one call": lambda: nn.Sequential(layer(), nn.Linear(20, 3), nn.ReLU()),
    "two states": lambda: Recurrent(
        cells.LSTMProjected(proj_size=4), 5, [8, 8], learn_initial=True
    ),
    "layer by layer": lambda: nn.Sequential(LSTM(5, 8, 2), SkipState()),
    "reference": lambda: Recurrent(cells.LSTM(), 5, 8, backend="reference", learn_initial=True),
}


class SkipState(nn.Module):
    def forward(self, outputs: Any) -> Tensor:
        return Skipping()(outputs[0])


def make(kind: str) -> nn.Module:
    model = MODELS[kind]()
    with torch.no_grad():
        for v in model.parameters():
            v.normal_(0, 0.3)
    return model


def alone(model: nn.Module, x: Tensor) -> Tensor:
    """A row's outputs, stepped in a stream of its own."""
    stream = Stream(model)
    return torch.stack([stream(v[None])[0] for v in x])


@pytest.mark.parametrize("rows", [5, 70])
@pytest.mark.parametrize("kind", MODELS)
def test_rows_step_as_if_alone(kind: str, rows: int) -> None:
    model, exact = make(kind), kind != "reference"
    x = torch.randn(12, rows, 5)
    stream, taken = Stream(model, rows), [0] * rows
    found: dict[int, list[Tensor]] = {b: [] for b in range(rows)}
    for t in range(12):
        chosen = torch.randperm(rows)[: [1, 3, rows, rows - 1][t % 4]]
        given = torch.stack([x[taken[b], b] for b in chosen])
        forms = (chosen.tolist(), chosen.numpy(), chosen, chosen.to(torch.int32))
        y = stream.step(given if t % 3 else given.numpy(), rows=forms[t % 4])
        for b, row in zip(chosen.tolist(), torch.as_tensor(y), strict=True):
            found[b].append(row)
            taken[b] += 1
    for b in range(0, rows, 7):
        if found[b]:
            expected = alone(model, x[: len(found[b]), b])
            if exact:
                assert torch.equal(torch.stack(found[b]), expected)
            else:
                torch.testing.assert_close(torch.stack(found[b]), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_rows_join_and_leave(kind: str) -> None:
    model = make(kind)
    x = torch.randn(9, 80, 5)
    stream, other = Stream(model, 3), Stream(model, 80)
    whole = torch.stack([other(v) for v in x])
    close = torch.testing.assert_close if kind == "reference" else _same_bits
    close(stream(x[0, :3]), whole[0, :3])
    assert stream.rows(80) is stream and stream.batch == 80
    close(stream.step(x[1, :3], rows=[0, 1, 2]), whole[1, :3])
    close(stream.step(x[0, 3:], rows=range(3, 80)), whole[0, 3:])
    close(stream.step(x[1, 70:], rows=range(70, 80)), whole[1, 70:])
    close(stream(x[2])[:3], whole[2, :3])
    stream.keep([71, 0, 2])
    close(stream(torch.stack([x[3, 71], x[3, 0], x[3, 2]]))[1:], whole[3, [0, 2]])
    stream.keep(torch.tensor([False, True, True])).rows(4)
    given = torch.stack([x[4, 0], x[4, 2], x[0, 5], x[0, 6]])
    close(stream(given), torch.stack([whole[4, 0], whole[4, 2], whole[0, 5], whole[0, 6]]))
    stream.rows(1)
    close(stream(x[5, :1]), whole[5, :1])


def _same_bits(a: Tensor, b: Tensor) -> None:
    assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [3, 66])
@pytest.mark.parametrize("kind", MODELS)
def test_a_row_saved_and_loaded(kind: str, rows: int) -> None:
    model = make(kind)
    x = torch.randn(6, rows, 5)
    stream = Stream(model, rows)
    for v in x[:3]:
        stream(v)
    saved = stream.save(1)
    assert all(v.shape[1] == 1 for part in saved for s in part for v in s)
    expected = stream(x[3])
    other = Stream(model, rows)
    other.load(2, saved)
    torch.testing.assert_close(other.save(2), saved, rtol=0, atol=0)
    y = other.step(x[3, 1:2], rows=[2])
    torch.testing.assert_close(y, expected[1:2])
    fresh = Stream(model, rows)
    torch.testing.assert_close(other.save(0), fresh.save(0), rtol=0, atol=0)
    one = Stream(model)
    one.state = saved
    torch.testing.assert_close(one(x[3, 1:2]), expected[1:2])
    stream.reset([1])
    torch.testing.assert_close(stream.save(1), fresh.save(0), rtol=0, atol=0)
    torch.testing.assert_close(stream.step(x[0, 1:2], rows=[1]), fresh(x[0])[1:2])


def test_direct_inputs_of_some_rows() -> None:
    model = Recurrent(Decaying(), 5, 6, return_state=False)
    x = torch.randn(4, 70, 5)
    inputs = {"dt": torch.rand(4, 70, 1), "gain": torch.rand(4, 70, 6)}
    whole, stream = model(x, inputs=inputs), Stream(model, 70)
    rows = torch.randperm(70)[:30]
    for t in range(4):
        given = {n: v[t, rows] for n, v in inputs.items()}
        assert torch.equal(stream.step(x[t, rows], rows=rows, inputs=given), whole[t, rows])
    stream.reset()
    given = {n: v[0] for n, v in inputs.items()}
    assert torch.equal(stream(x[0], inputs=given), whole[0])


def test_no_rows_and_a_mask() -> None:
    stream, x = GRU(5, 6).stream(4), torch.randn(4, 5)
    assert stream.step(x[:0], rows=[]).shape == (0, 6)
    assert not stream.state[0][0][0].any()
    y = stream.step(x[[0, 3]], rows=[True, False, False, True])
    moved = stream.state[0][0][0][0]
    assert torch.equal(moved[[0, 3]], y) and not moved[1:3].any()
    other = Stream(stream._source, 4)
    other.state = stream.state
    assert torch.equal(stream.step(x), other(x))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([0, 2], r"^rows must be from 0 to 1, got 2$"),
        ([-1], r"^rows must be from 0 to 1, got -1$"),
        ([0, 1, 0], r"^rows must differ, got 0 twice$"),
        ([0.5], r"^rows must be numbers of rows or a bool mask, got torch.float(32|64)$"),
        ("first", r"^rows must be numbers of rows or a bool mask, got 'first'$"),
        ([[0], [0, 1]], r"^rows must be numbers of rows or a bool mask, got \[\[0\], \[0, 1\]\]$"),
    ],
)
def test_bad_rows(rows: Any, text: str) -> None:
    stream = GRU(5, 6).stream(2)
    with pytest.raises((ShapeError, TypeError), match=text):
        stream.step(torch.ones(len(rows), 5), rows=rows)
    with pytest.raises((ShapeError, TypeError), match=text):
        stream.keep(rows)


def test_bad_numbers_of_rows() -> None:
    stream = GRU(5, 6).stream(2)
    with pytest.raises(ShapeError, match=r"^one step of this stream is \(1, I\), .*\(2, 5\) for x"):
        stream.step(torch.ones(2, 5), rows=[1])
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(OptionError, match="^batch must be a positive integer, got"):
            stream.rows(wrong)
    with pytest.raises(OptionError, match="^batch must be a positive integer, got 0$"):
        stream.keep([])
    with pytest.raises(ShapeError, match="^row must be from 0 to 1, got 2$"):
        stream.save(2)
    with pytest.raises(TypeError, match="^row must be the number of a row, got None$"):
        stream.load(None, stream.save(0))
    with pytest.raises(ShapeError, match=r"^state h of layer 0 must be \(1, 1, 6\), got"):
        stream.load(0, stream.state)


def test_a_client_takes_less_than_two_thousand_bytes() -> None:
    stream = GRU(8, 64).stream(2000)
    compiled = stream._compiled
    assert compiled is not None
    assert sum(v.nbytes for v in compiled.states) <= 2000 * 2000


@pytest.mark.parametrize("model", [GRU(8, 512), nn.Sequential(GRU(8, 64), SkipState())], ids=str)
def test_threads_that_step_one_stream_wait_for_each_other(model: nn.Module) -> None:
    with torch.no_grad():
        for name, v in model.named_parameters():
            if "bias_ih" in name:
                v[len(v) // 3 : 2 * len(v) // 3] += 6.0  # keeps, so that the state goes on moving
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    shared, one = Stream(model, 2), Stream(model, 2)
    for _ in range(80):
        one(x)
    threads = [threading.Thread(target=lambda: [shared(x) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(shared.state[0][0][0], one.state[0][0][0])


def _read_only(shape: tuple[int, ...]) -> Any:
    found = np.zeros(shape, np.float32)
    found.flags.writeable = False
    return found


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_whose_result_cannot_be_written_is_none(kind: str, rows: int) -> None:
    model = make(kind)
    stream, x = Stream(model, rows), torch.randn(rows, 5)
    stream(x)
    before, shape = stream.state, tuple(stream(x).shape)
    stream.state = before
    one = torch.zeros(shape[1:]).expand(shape) if rows > 1 else torch.zeros(2)
    with torch.inference_mode():
        frozen = torch.zeros(shape)
    for given, out in ((x.numpy(), _read_only(shape)), (x, one), (x, frozen), (x, one.numpy())):
        with pytest.raises((ValueError, RuntimeError)):
            stream(given, out=out)
        torch.testing.assert_close(stream.state, before, rtol=0, atol=0)
    expected, out = stream(x), torch.zeros(shape)
    stream.state = before
    assert stream(x, out=out) is out and torch.equal(out, expected)


def test_a_result_written_over_x() -> None:
    stream, other = GRU(6, 6).stream(2), None
    x = torch.randn(2, 6)
    for rows in (2, 70):
        stream.rows(rows)
        stream.reset()
        other = Stream(stream._source, rows)
        for kind in (torch.Tensor.clone, lambda v: v.numpy().copy()):
            given = kind(x.repeat(rows // 2, 1))
            expected = other(given)
            stream(given, out=given)
            assert (torch.as_tensor(given) == torch.as_tensor(expected)).all()
