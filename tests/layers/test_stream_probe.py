"""Models with a part that computes across steps: refused by name, whoever gives what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import GRU, LSTM, Recurrent, Stream, cells
from throughtime.errors import OptionError


class Own(nn.Module):
    """A layer, and a function of its outputs (B, T, H) or (T, B, H)."""

    def __init__(self, function: Any, batch_first: bool = False, part: Any = None) -> None:
        super().__init__()
        self.rnn = GRU(5, 8, batch_first=batch_first)
        self.function, self.part, self.out = function, part, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.rnn(x)[0]
        return self.function(self, y)


def convolved(self: Own, y: Tensor) -> Tensor:
    return self.out(self.part(y.transpose(1, 2)).transpose(1, 2))


def attended(self: Own, y: Tensor) -> Tensor:
    return self.out(self.part(y, y, y)[0])


_ACROSS = "^the forward of Own computes across steps"
OVER_TIME: dict[str, tuple[Any, str]] = {
    "convolution": (lambda: Own(convolved, True, nn.Conv1d(8, 8, 3, padding=1)),
                    "^part, a Conv1d, computes across steps"),
    "dilated": (lambda: Own(convolved, True, nn.Conv1d(8, 8, 3, padding=16, dilation=16)),
                "^part, a Conv1d, computes across steps"),
    "pooling": (lambda: Own(convolved, True, nn.AvgPool1d(3, 1, 1)), "^part, a AvgPool1d, compu"),
    "attention": (lambda: Own(attended, False, nn.MultiheadAttention(8, 2)),
                  "^part, a MultiheadAttention, computes across steps"),
    "sum": (lambda: Own(lambda m, y: m.out(y.cumsum(0))), _ACROSS),
    "mean": (lambda: Own(lambda m, y: m.out(y).mean(0)), _ACROSS),
    "norm": (lambda: Own(lambda m, y: m.out(y - y.mean(1, keepdim=True)), True),
             _ACROSS),
    "instance norm": (lambda: Own(convolved, True, nn.InstanceNorm1d(8)),
                      "^part, a InstanceNorm1d, (takes whole sequences|computes across steps)"),
    "shift": (lambda: Own(lambda m, y: m.out(torch.cat([torch.zeros_like(y[:1]), y[:-1]]))),
              _ACROSS),
    "softmax": (lambda: nn.Sequential(Recurrent(cells.GRU(), 5, 8, return_state=False),
                                      nn.Softmax(0)), "^1, a Softmax, computes across steps"),
    "in a mapping": (lambda: Own(lambda m, y: {"a": m.out(y), "b": y.cumsum(0)}),
                     _ACROSS),
    "in a list": (lambda: Own(lambda m, y: [m.out(y), y.flip(0)]), "^the forward of Own computes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OVER_TIME)
def test_what_looks_over_time_is_refused_by_name(kind: str) -> None:
    make, text = OVER_TIME[kind]
    model = make()
    before = torch.random.get_rng_state()
    with pytest.raises(OptionError, match=text + ".* compute each step alone"):
        Stream(model, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


class Pairs(nn.Module):
    """Takes rows twice as wide as its layer, so that no part tells its width."""

    def __init__(self, positions: bool) -> None:
        super().__init__()
        self.rnn, self.positions = LSTM(5, 8), positions

    def forward(self, x: Tensor) -> Tensor:
        T, B, _ = x.shape
        y: Tensor = self.rnn(x.view(T, B, 2, 5).sum(2))[0]
        return y + torch.arange(T).view(T, 1, 1) if self.positions else y


def test_what_only_the_first_step_tells_is_refused_then() -> None:
    stream = Stream(Pairs(True), 2)
    before = stream.state
    with pytest.raises(OptionError, match="the forward of Pairs computes across steps"):
        stream(torch.randn(2, 10))
    torch.testing.assert_close(stream.state, before, rtol=0, atol=0)
    with pytest.raises(OptionError, match="the forward of Pairs computes across steps"):
        stream(torch.randn(2, 10))
    model, x = Pairs(False), torch.randn(4, 2, 10)
    stream = Stream(model, 2)
    torch.testing.assert_close(torch.stack([stream(v) for v in x]), model(x))


class Rounding(nn.Module):
    """An encoder that rounds otherwise where a step is alone, as matrix products may."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = Recurrent(cells.Elman(), 64, 64)
        with torch.no_grad():
            self.rnn.weight_hh_l0.normal_(0, 0.6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x + 1e-6 * (len(x) == 1))[0]
        return y


def test_a_layer_that_grows_roundings_does_not_look_over_time() -> None:
    torch.manual_seed(0)
    model, x = Rounding(), torch.randn(33, 2, 64)
    stream = Stream(model, 2)
    found, whole = torch.stack([stream(v) for v in x]), model(x)
    torch.testing.assert_close(found[:3], whole[:3], rtol=1e-3, atol=1e-3)
    assert (found[-1] - whole[-1]).abs().max() > 0.1, "roundings grow, and no part is to blame"


ALONE: dict[str, Any] = {
    "last step": lambda: Own(lambda m, y: m.out(y[-1])),
    "last step, one number": lambda: Own(lambda m, y: m.out(y[:, -1])[:, :1], True),
    "greatest": lambda: Own(lambda m, y: m.out(y).argmax(-1)),
    "flattened": lambda: Own(lambda m, y: m.out(y.flatten(0, 1)).unflatten(0, y.shape[:2])),
    "flattened, batch first": lambda: Own(
        lambda m, y: m.out(y.flatten(0, 1)).unflatten(0, y.shape[:2]), True
    ),
    "two": lambda: Own(lambda m, y: (m.out(y), y.sum(-1))),
    "batch norm": lambda: Own(lambda m, y: m.part(y.flatten(0, 1)).view_as(y), False,
                              nn.BatchNorm1d(8)),
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", ALONE)
def test_what_looks_at_each_step_alone_equals_the_whole(kind: str, rows: int) -> None:
    model = ALONE[kind]().eval()
    stream, x = Stream(model, rows), torch.randn(5, rows, 5)
    for t in range(5):
        given = x[: t + 1]
        whole = model(given.transpose(0, 1) if model.rnn.batch_first else given)
        found = stream(x[t])
        for a, b in zip(_tuple(found), _tuple(whole), strict=True):
            if "last" not in kind:
                b = b[:, -1] if model.rnn.batch_first else b[-1]
            torch.testing.assert_close(a, b)


def _tuple(y: Any) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = GRU(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y + torch.randn_like(y)


def test_a_model_that_tosses_coins_is_taken_at_its_word() -> None:
    assert Stream(Noisy(), 2)(torch.randn(2, 5)).shape == (2, 8)


def test_states_that_a_model_hands_on_are_no_outputs() -> None:
    class Handing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = LSTM(5, 8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            y, state = self.rnn(x)
            return self.out(y), y, state

    model, x = Handing(), torch.randn(4, 2, 5)
    whole, stream = model(x), Stream(model, 2)
    for t in range(4):
        found = stream(x[t])
        assert len(found) == 2
        for a, b in zip(found, whole, strict=False):
            torch.testing.assert_close(a, b[t])
