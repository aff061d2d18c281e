"""Models with a forward of their own: one call where they hand rows from part to part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.layers.test_stream_compiled import ONE_CALL, steps
from throughtime import GRU, LSTM, Recurrent, Stream, cells


class Block(nn.Module):
    """A layer with a norm before it, added to what it reads."""

    def __init__(self, width: int, kind: Any) -> None:
        super().__init__()
        self.norm, self.rnn = nn.LayerNorm(width), kind(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.norm(x))
        z: Tensor = x + torch.relu(y)
        return z


class Net(nn.Module):
    """Blocks, activations as functions, dropout, and a state handed on."""

    def __init__(self, state: bool = False) -> None:
        super().__init__()
        self.out = nn.Linear(9, 2)
        self.encode = nn.Linear(5, 9)
        self.blocks = nn.ModuleList([Block(9, LSTM), Block(9, GRU)])
        self.last = GRU(9, 9, 2, dropout=0.5)
        self.state, self.seen = state, None

    def forward(self, x: Tensor, given: Any = None) -> Any:
        h = functional.gelu(self.encode(x)) * 0.5 - 1
        self.seen = h
        for block in self.blocks:
            h = block(h)
        h, state = self.last(functional.dropout(h, 0.3, self.training))
        y = self.out(h).tanh()
        return (y, state) if self.state else y


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("state", [False, True])
def test_a_forward_of_its_own_is_one_call(rows: int, state: bool) -> None:
    model = nn.Sequential(Net(state)).double() if state else Net().double()
    stream, x = Stream(model, rows), torch.randn(5, rows, 5, dtype=torch.float64)
    assert stream.explain() == ONE_CALL
    whole = model.eval()(x)
    whole = whole[0] if state else whole
    torch.testing.assert_close(steps(stream, x), whole, rtol=1e-10, atol=1e-12)
    stream.reset()
    torch.testing.assert_close(steps(stream, x.numpy()), whole, rtol=1e-10, atol=1e-12)
    other = Stream(model, rows)
    other.state = stream.state
    torch.testing.assert_close(other(x[0]), stream(x[0]))


class Own(nn.Module):
    """Two layers and a function of them, x and the model."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.second = GRU(5, 5), GRU(5, 5)
        self.relu, self.function = nn.ReLU(inplace=True), function
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def reused(m: Own, x: Tensor) -> Tensor:
    y = m.first(x)[0]
    z = m.relu(y)  # which changes y
    found: Tensor = m.second(y + z)[0]
    return found


LAYER_BY_LAYER: dict[str, tuple[Any, str]] = {
    "another order": (lambda m, x: m.first(m.second(x)[0])[0], "in another order"),
    "a product of rows": (lambda m, x: m.second(m.first(x)[0] * x)[0], "joins values in mul"),
    "a parameter": (lambda m, x: m.second(m.first(x)[0])[0] * m.scale, "holds scale"),
    "a branch": (lambda m, x: m.second(m.first(x)[0])[0] if x.sum() < 1e9 else x, "be followed"),
    "a state": (lambda m, x: m.second(m.first(x)[0])[1].relu(), "from a layer's state"),
    "an index": (lambda m, x: m.second(m.first(x)[0])[0][..., :2], "indexes a part's output"),
    "two tensors": (lambda m, x: (m.second(m.first(x)[0])[0], x), "more than one tensor"),
    "in place": (reused, "forward does more than call its parts"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYER_BY_LAYER)
def test_what_does_more_goes_layer_by_layer_and_says_why(kind: str) -> None:
    function, reason = LAYER_BY_LAYER[kind]
    model = Own(function)
    stream, x = Stream(model, 2), torch.randn(5, 2, 5)
    assert stream.explain().startswith("layer by layer, since ") and reason in stream.explain()
    for t in range(5):
        whole, found = model(x[: t + 1].clone()), stream(x[t].clone())
        for a, b in zip(_tuple(found), _tuple(whole), strict=True):
            torch.testing.assert_close(a[-1] if a.dim() == b.dim() else a, b[-1])


def _tuple(y: Any) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def test_a_model_that_is_followed_keeps_nothing_of_it() -> None:
    model = Net()
    stream = Stream(model)
    assert model.seen is None and stream._frozen.model.seen is not model
    assert isinstance(stream._frozen.model.seen, Tensor | None)


def test_many_rows_of_a_residual() -> None:
    layer = Recurrent(cells.GRU(), 9, 9, return_state=False)
    model = nn.Sequential(Block(9, GRU), layer)
    x = torch.randn(4, 100, 9)
    stream, whole = Stream(model, 100), model(x)
    rows = torch.randperm(100)[:37]
    assert stream.explain() == ONE_CALL
    found = torch.stack([stream.step(v[rows], rows=rows) for v in x])
    torch.testing.assert_close(found, whole[:, rows])
