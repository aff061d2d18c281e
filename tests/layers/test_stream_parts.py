"""Activations, normalisations and look-ups in the one call of a compiled step."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.layers.test_stream_compiled import ONE_CALL, steps
from throughtime import GRU, LSTM, Readout, Recurrent, Stream, cells


class Scaled(nn.Module):
    """A part of a user's own: what its data were, taken away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(width))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > self.mean, (x - self.mean) * self.scale, x.abs())


def layer(I: int = 5, H: int = 20) -> Recurrent:
    return Recurrent(cells.GRU(), I, H, return_state=False)


BEHIND: list[Any] = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU,
    nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Identity,
    lambda: nn.LeakyReLU(0.3, inplace=True), lambda: nn.Softmax(-1), lambda: nn.LayerNorm(20),
    lambda: nn.LayerNorm(20, elementwise_affine=False), lambda: Scaled(20),
    lambda: Readout(20, 7, activation="tanh"), lambda: Readout(20, 7, activation=torch.relu),
    lambda: nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 3), nn.ReLU(), nn.Linear(3, 2)),
]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("make", BEHIND, ids=lambda make: repr(make()).partition("(")[0])
def test_a_step_with_what_looks_at_each_row_equals_the_whole(make: Any, rows: int) -> None:
    model = nn.Sequential(layer(), make()).double()
    with torch.no_grad():
        for v in model.parameters():
            v.normal_(0, 0.5)
    stream, x = Stream(model, rows), torch.randn(4, rows, 5, dtype=torch.float64)
    assert stream.explain() == ONE_CALL
    whole = model(x.clone())
    torch.testing.assert_close(steps(stream, x), whole, rtol=1e-10, atol=1e-12)
    stream.reset()
    torch.testing.assert_close(steps(stream, x.numpy()), whole, rtol=1e-10, atol=1e-12)


def test_relu_has_the_bits_of_the_whole() -> None:
    model = nn.Sequential(layer(), nn.ReLU())
    x = torch.randn(6, 2, 5)
    assert torch.equal(steps(Stream(model, 2), x), model(x))


def test_a_norm_in_front() -> None:
    model = nn.Sequential(nn.LayerNorm(5), nn.Tanh(), layer(), nn.ReLU(), nn.Linear(20, 5))
    model = nn.Sequential(*model, layer(), nn.LayerNorm(20)).double()
    x = torch.randn(5, 2, 5, dtype=torch.float64)
    stream = Stream(model, 2)
    assert stream.explain() == ONE_CALL
    torch.testing.assert_close(steps(stream, x), model(x), rtol=1e-10, atol=1e-12)


class OverRows(nn.Module):
    """Along dimension 1: of a sequence the rows of the batch, of one step's rows the units."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("part", [nn.Softmax(1), OverRows()], ids=str)
def test_what_does_not_look_at_each_row_alone_is_not_compiled(part: nn.Module) -> None:
    model = nn.Sequential(layer(), part)
    stream, x = Stream(model, 3), torch.randn(4, 3, 5)
    assert "does not look at each row of a sequence alone" in stream.explain()
    torch.testing.assert_close(steps(stream, x), model(x))


class CharNet(nn.Module):
    """The usual net of characters, its look-up and readout in a forward of its own."""

    def __init__(self, kind: type[nn.Module], batch_first: bool, odd: bool) -> None:
        super().__init__()
        self.odd = odd
        self.embedding = nn.Embedding(13, 6)
        self.rnn = kind(6, 16, 2, batch_first=batch_first)
        self.out = nn.Linear(16, 13)

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.rnn(self.embedding(tokens))[0]
        found: Tensor = self.out(y.flip(-1) if self.odd else y)
        return found


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", [GRU, LSTM])
@pytest.mark.parametrize("way", ["stack", "forward", "layer by layer"])
def test_steps_of_tokens(kind: Any, rows: int, way: str) -> None:
    tokens = torch.randint(13, (9, rows))
    for batch_first in (False, True):
        model: nn.Module = CharNet(kind, batch_first, way == "layer by layer")
        if way == "stack":
            parts = [model.embedding, model.rnn, Readout(network=model.out)]
            model = nn.Sequential(*parts)
        with torch.no_grad():
            whole = model(tokens.T if batch_first else tokens)
        whole = whole[0] if way == "stack" else whole
        whole = whole.transpose(0, 1) if batch_first else whole
        stream = Stream(model, rows)
        assert (stream.explain() == ONE_CALL) == (way != "layer by layer")
        numbers = tokens.numpy()
        forms = (tokens, tokens.int(), tokens.unsqueeze(-1), numbers, numbers.astype(np.uint8))
        for given in forms:
            stream.reset()
            found = steps(stream, given)
            torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
        if rows == 1:
            stream.reset()
            one = stream(tokens[0, 0])
            assert one.shape == (13,)
            torch.testing.assert_close(one, whole[0, 0], rtol=1e-4, atol=1e-5)
            assert stream(tokens[1].numpy()[0]).shape == (13,)


def test_tokens_without_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), layer(4))
    stream = Stream(model, 2)
    stream(torch.tensor([3, 8]))
    before = stream.state
    for wrong in (9, -1):
        text = f"x must hold numbers from 0 to 8, one of 9 embeddings each, got {wrong}"
        with pytest.raises(IndexError, match=text):
            stream(torch.tensor([3, wrong]))
    torch.testing.assert_close(stream.state, before, rtol=0, atol=0)


class Skipping(nn.Module):
    """A part without a rule in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


class Branching(nn.Module):
    """A forward of its own around a layer that gives its state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = LSTM(5, 20, 2), nn.Linear(20, 3)
        self.turn = Skipping()

    def forward(self, x: Tensor) -> Any:
        y, (h, _) = self.rnn(x)
        assert h.shape == (2, x.shape[1], 20)
        return {"y": self.out(self.turn(y)), "all": [y.relu(), y.sum(-1)]}


def test_a_step_layer_by_layer_calls_compiled_layers() -> None:
    model = nn.Sequential(layer(), Skipping(), nn.ReLU(), layer(20))
    x = torch.randn(6, 2, 5)
    stream = Stream(model, 2)
    assert stream.explain().endswith("a Skipping, which its own code computes: flip has no rule")
    assert torch.equal(steps(stream, x), model(x))


def test_mappings_and_lists_of_outputs() -> None:
    model, x = Branching(), torch.randn(6, 2, 5)
    whole, stream = model(x), Stream(model, 2)
    for t in range(6):
        saved = stream.state
        for given in (x[t], x[t].numpy()):
            stream.state = saved
            found = stream(given)
            assert list(found) == ["y", "all"] and type(found["all"]) is list
            for a, b in zip([found["y"], *found["all"]], [whole["y"], *whole["all"]], strict=True):
                assert type(a) is type(given)
                torch.testing.assert_close(torch.as_tensor(a), b[t])


def test_streams_of_one_model_share_what_is_packed() -> None:
    model = nn.Sequential(layer(), nn.Linear(20, 3))
    first, second = Stream(model), Stream(model, 3)
    assert first._frozen is second._frozen
    x = torch.randn(4, 1, 5)
    whole = model(x)
    with torch.no_grad():
        model[0].weight_hh_l0.data.mul_(-1)  # which no version of a tensor tells
    third = Stream(model)
    assert torch.equal(steps(first, x), steps(Stream(copy.deepcopy(first)._frozen.model), x))
    torch.testing.assert_close(steps(third, x), model(x))
    assert not torch.allclose(whole, model(x))
    model[1] = nn.Sequential(nn.Linear(20, 3), nn.ReLU())
    torch.testing.assert_close(steps(Stream(model), x), model(x))
    narrow = [Stream(model, weights=torch.bfloat16) for _ in range(2)]
    assert narrow[0]._frozen is narrow[1]._frozen
