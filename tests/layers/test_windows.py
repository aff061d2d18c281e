"""windows(): the whole sequence in value; in gradient, cut exactly at every k-th step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_sequence

from tests.layers.own import Decaying, decaying
from tests.layers.plain import agree, build, flat, gru, lstm, plain, random
from tests.layers.test_options import start
from throughtime import GRU, LSTM, cells
from throughtime.errors import OptionError, ShapeError

RAGGED = [7, 0, 5, 2]


@pytest.mark.parametrize("k", [1, 3, 7, 20])
@pytest.mark.parametrize("kind", ["plain", "ragged", "reset"])
def test_value_of_the_whole_and_gradient_of_each_window(k: int, kind: str) -> None:
    layer = build(cells.LSTM(), 3, [4, 2], learn_initial=True)
    x, state = random(7, 4, 3), start(layer, 4)
    reset = torch.rand(7, 4) < 0.3 if kind == "reset" else None
    lengths = None if kind == "plain" else RAGGED
    whole = plain(layer, lstm, x, state=state, lengths=lengths, reset=reset)
    found = list(layer.windows(x, k, state, lengths=lengths, reset=reset))
    agree(torch.cat([w.outputs for w in found]), whole[0])
    agree(found[-1].state, whole[1])
    assert [(w.steps.start, w.steps.stop) for w in found] == [
        (t, min(t + k, 7)) for t in range(0, 7, k)
    ]
    carried: Any = state
    for window in found:
        a, b = window.steps.start, window.steps.stop
        inside = None if lengths is None else [min(max(n - a, 0), b - a) for n in lengths]
        cut = None if reset is None else reset[a:b]
        y, last, _ = plain(layer, lstm, x[a:b], state=carried, lengths=inside, reset=cut)
        agree(window.outputs, y, [x, *flat(state), *layer.parameters()])
        carried = tuple(tuple(v.detach() for v in part) for part in last)
        agree(window.state, carried)
        assert not any(v.requires_grad for v in flat(window.state))


def test_layouts_and_start() -> None:
    layer = build(cells.GRU(), 3, 4, batch_first=True, learn_initial=True)
    x = random(5, 2, 3)
    y, last, _ = plain(layer, gru, x)
    found = list(layer.windows(x.transpose(0, 1), 2))
    agree(torch.cat([w.outputs for w in found], 1), y.transpose(0, 1))
    agree(found[-1].state, last)
    alone = list(layer.windows(x[:, 0], 2))
    agree(torch.cat([w.outputs for w in alone]), y[:, 0])
    agree(alone[-1].state[0][0], last[0][0][:, 0])
    assert list(layer.windows(x[:0].transpose(0, 1), 2)) == []


def test_direct_inputs_are_cut_alike() -> None:
    layer = build(Decaying(), 3, 4)
    x, inputs = random(5, 2, 3), {"dt": random(5, 2, 1), "gain": random(5, 2, 4)}
    found = list(layer.windows(x, 2, inputs=inputs))
    agree(torch.cat([w.outputs for w in found]), plain(layer, decaying, x, inputs=inputs)[0])


def test_a_drop_in_takes_the_state_back() -> None:
    layer = GRU(3, 4, dtype=torch.float64)
    x = random(5, 2, 3)
    found = list(layer.windows(x, 2))
    agree((torch.cat([w.outputs for w in found]), found[-1].state), layer(x))
    agree(layer(x[2:4], found[0].state)[0], found[1].outputs)


def test_training_in_windows_frees_each_graph() -> None:
    layer = build(cells.GRU(), 3, 4)
    x = random(6, 2, 3)
    for window in layer.windows(x, 2):
        window.outputs.sum().backward()
    expected = torch.zeros_like(layer.weight_hh_l0)
    state = None
    for t in (0, 2, 4):
        y, state, _ = plain(layer, gru, x[t : t + 2], state=state)
        expected += torch.autograd.grad(y.sum(), layer.weight_hh_l0)[0]
        state = tuple(tuple(v.detach() for v in part) for part in state)
    agree(layer.weight_hh_l0.grad, expected)


def test_recurrent_dropout_is_one_mask_a_sequence_over_all_windows() -> None:
    layer = build(cells.LSTM(), 3, [4, 2], recurrent_dropout=0.5)
    x = random(6, 3, 3)
    for seed in (3, 4):
        torch.manual_seed(seed)
        masks = [dropout(torch.ones(1, 3, width).double(), 0.5) for width in (4, 2)]
        torch.manual_seed(seed)
        found = list(layer.windows(x, 4, lengths=[6, 2, 5]))
        y, last, _ = plain(layer, lstm, x, lengths=[6, 2, 5], masks=masks)
        agree(torch.cat([w.outputs for w in found]), y)
        agree(found[-1].state, last)
    layer.eval()
    agree(torch.cat([w.outputs for w in layer.windows(x, 4)]), plain(layer, lstm, x)[0])


def test_weight_dropout_is_drawn_anew_for_each_window() -> None:
    layer = build(cells.GRU(), 3, 4, weight_dropout=0.5)
    x = random(5, 2, 3)
    torch.manual_seed(19)
    dropped = [layer.weight_hh_l0 * dropout(torch.ones(12, 4).double(), 0.5) for _ in range(2)]
    torch.manual_seed(19)
    state = None
    for window, weight in zip(layer.windows(x, 3), dropped, strict=True):
        y, state, _ = plain(layer, gru, x[window.steps], state=state, dropped=[[weight]])
        agree(window.outputs, y)


KINDS: dict[str, Any] = {
    "GRU": lambda **more: GRU(6, 5, dtype=torch.float64, **more),
    "LSTM": lambda **more: LSTM(6, 5, 2, dtype=torch.float64, **more),
    "MGU": lambda **more: build(cells.MGU(), 6, 5, **more),
}


class Tagger(nn.Module):
    """An encoder that learns, a layer and a head, over 10 steps of 3 rows of 7 words."""

    def __init__(self, kind: str, *, batch_first: bool = False) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.Tanh()).double()
        self.layer = KINDS[kind](batch_first=batch_first)
        self.head = nn.Linear(5, 2).double()
        self.time = int(batch_first)
        self.words = torch.randint(7, (3, 10) if batch_first else (10, 3))

    def loss(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.head(outputs).square().mean()

    def by_hand(self, optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
        """Encodes each window, as one does without `windows`; the gradients of all windows."""
        state, found = None, []
        for words in self.words.split(4, self.time):
            optimiser.zero_grad()
            y, state = self.layer(self.encode(words), state)
            state = _detached(state)
            self.loss(y).backward()
            found += [p.grad.clone() for p in self.parameters() if p.grad is not None]
            optimiser.step()
        return found

    def by_windows(
        self, optimiser: torch.optim.Optimizer, x: Any, **given: Any
    ) -> list[torch.Tensor]:
        found = []
        for window in self.layer.windows(x, 4, **given):
            optimiser.zero_grad()
            self.loss(window.outputs).backward()
            found += [p.grad.clone() for p in self.parameters() if p.grad is not None]
            optimiser.step()
        return found


def _detached(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.detach()
    return tuple(_detached(part) for part in state)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_with_an_encoder_is_the_loop_by_hand(kind: str, batch_first: bool) -> None:
    """Gradients and steps of all parts, the encoder's among them."""
    model = Tagger(kind, batch_first=batch_first)
    other = copy.deepcopy(model)
    expected = model.by_hand(torch.optim.Adam(model.parameters(), 0.1))
    adam = torch.optim.Adam(other.parameters(), 0.1)
    found = other.by_windows(adam, other.words, encode=other.encode)
    agree(found, expected)
    agree(list(other.parameters()), list(model.parameters()))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_what_was_encoded_before_reaches_the_encoder(
    kind: str, batch_first: bool
) -> None:
    """Window by window, and of all windows at once."""
    model = Tagger(kind, batch_first=batch_first)
    still = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    still.zero_grad = model.zero_grad  # type: ignore[method-assign]
    expected = model.by_hand(still)
    agree(model.by_windows(still, model.encode(model.words)), expected)
    model.zero_grad()
    torch.stack([
        model.loss(w.outputs) for w in model.layer.windows(model.encode(model.words), 4)
    ]).sum().backward()  # fmt: skip
    parts = len(list(model.parameters()))
    sums = [torch.stack(expected[i::parts]).sum(0) for i in range(parts)]
    agree([p.grad for p in model.parameters()], sums)


def test_direct_inputs_hand_their_gradient_on() -> None:
    layer, x = build(Decaying(), 3, 4), random(6, 2, 3)
    rate, gain = random(1), random(6, 2, 4)
    for window in layer.windows(x, 2, inputs={"dt": (rate * x[..., :1]).exp(), "gain": gain}):
        window.outputs.square().sum().backward()
    found = rate.grad.clone()  # type: ignore[union-attr]
    rate.grad, state = None, None
    for t in (0, 2, 4):
        inputs = {"dt": (rate * x[t : t + 2, :, :1]).exp(), "gain": gain[t : t + 2]}
        y, state = layer(x[t : t + 2], state, inputs=inputs)
        state = _detached(state)
        y.square().sum().backward()
    agree(found, rate.grad)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
def test_second_derivatives_need_an_encoder() -> None:
    layer, w, z = build(cells.GRU(), 3, 4), random(3), random(4, 2, 3).detach()
    found = next(layer.windows(z, 2, encode=lambda v: v * w.tanh())).outputs
    second = [torch.autograd.functional.hessian(lambda v: layer(z[:2] * v.tanh())[0].sum(), w)]
    (d_w,) = torch.autograd.grad(found.sum(), w, create_graph=True)
    agree([torch.stack([torch.autograd.grad(v, w, retain_graph=True)[0] for v in d_w])], second)
    window = next(layer.windows(z * w.tanh(), 2))
    with pytest.raises(OptionError, match="so no second derivative goes through it; give windows"):
        window.outputs.square().sum().backward(create_graph=True)


def test_weights_that_change_after_the_encoding_are_reported() -> None:
    model = Tagger("GRU")
    adam = torch.optim.Adam(model.parameters(), 0.1)
    windows = iter(model.layer.windows(model.encode(model.words), 4))
    model.loss(next(windows).outputs).backward()
    adam.step()
    text = "x was computed from weights that have changed since, so from step 4 on windows read wh"
    with pytest.warns(UserWarning, match=f"^{text}.* as encode= the function that") as caught:
        window = next(windows)
    assert caught[0].filename == __file__
    with pytest.raises(OptionError, match="so no gradient goes through them any more; give windo"):
        model.loss(window.outputs).backward()
    assert next(windows).steps == slice(8, 10)  # and no second warning


def test_a_view_of_a_leaf_stays_in_its_graph() -> None:
    layer, x = build(cells.GRU(), 3, 4, batch_first=True), random(6, 2, 3)
    for window in layer.windows(x.transpose(0, 1), 4):
        (found,) = torch.autograd.grad(window.outputs.sum(), x)
        assert found[window.steps].all() and found.count_nonzero() == found[window.steps].numel()


def test_nothing_is_handed_on_where_nothing_is_recorded() -> None:
    model = Tagger("GRU")
    with torch.no_grad():
        y, last = model.layer(model.encode(model.words))
        found = list(model.layer.windows(model.encode(model.words), 4))
    agree((torch.cat([w.outputs for w in found]), found[-1].state), (y, last))


@pytest.mark.parametrize("batch_first", [False, True])
def test_encoded_windows_are_the_encoded_whole(batch_first: bool) -> None:
    layer = build(Decaying(), 4, 4, batch_first=batch_first)
    embedding = nn.Embedding(7, 4).double()
    words, state = torch.randint(7, (6, 3)), start(layer, 3)
    reset, inputs = torch.rand(6, 3) < 0.3, {"dt": random(6, 3, 1), "gain": random(6, 3, 4)}
    given: dict[str, Any] = {"reset": reset, "inputs": inputs}
    if batch_first:
        words, reset = words.T, reset.T
        given = {"reset": reset, "inputs": {n: v.transpose(0, 1) for n, v in inputs.items()}}
    given |= {"lengths": [6, 3, 5], "starts": [0, 1, 4]}
    expected = layer(embedding(words), state, **given)
    for k in (1, 4, 6):
        found = list(layer.windows(words, k, state, encode=embedding, **given))
        agree(torch.cat([w.outputs for w in found], int(batch_first)), expected[0])
        agree(found[-1].state, expected[1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_of_words(batch_first: bool) -> None:
    layer = build(cells.LSTM(), 4, 3, batch_first=batch_first)
    embedding, words = nn.Embedding(7, 4).double(), torch.randint(7, (5,))
    found = list(layer.windows(words, 2, encode=embedding))
    y, last = layer(embedding(words))
    agree((torch.cat([w.outputs for w in found]), found[-1].state), (y, last))


def test_what_cannot_be_encoded() -> None:
    layer, words = build(cells.GRU(), 4, 3), torch.randint(7, (5, 2))
    embedding = nn.Embedding(7, 4).double()

    def first(encode: Any, x: Any = words, **given: Any) -> None:
        next(layer.windows(x, 2, encode=encode, **given))

    with pytest.raises(TypeError, match="^encode must give a tensor, got tuple"):
        first(lambda x: (x, x))
    with pytest.raises(ShapeError, match=r"steps and rows as it takes, \(2, 2\), got \(1, 2, 4\)"):
        first(lambda x: embedding(x)[:1])
    with pytest.raises(TypeError, match=r"^x must be a tensor whose steps encode takes, .* list"):
        first(embedding, [[1, 2]])
    with pytest.raises(ShapeError, match=r"reset must be \(5, 2\) as x, got \(2, 5\)"):
        first(embedding, reset=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ShapeError, match="lengths must be from 0 to 5"):
        first(embedding, lengths=[6, 1])
    with pytest.raises(ShapeError, match="the last dimension of x must be input_size 4, got 5"):
        first(nn.Embedding(7, 5).double())


@pytest.mark.parametrize("k", [0, -1, True, 2.0, None])
def test_bad_k(k: Any) -> None:
    with pytest.raises(OptionError, match="^k must be a positive number of steps, got"):
        build(cells.GRU(), 3, 4).windows(random(5, 2, 3), k)


def test_bad_encode() -> None:
    with pytest.raises(TypeError, match="^encode must be a function of steps or None, got 3$"):
        build(cells.GRU(), 3, 4).windows(random(5, 2, 3), 2, encode=3)


def test_what_cannot_be_cut() -> None:
    x, text = random(5, 2, 3), "^windows cut a sequence in time, .* bidirectional=False and dilat"
    with pytest.raises(OptionError, match=text):
        build(cells.GRU(), 3, 4, bidirectional=True).windows(x, 2)
    with pytest.raises(OptionError, match=text):
        build(cells.GRU(), 3, 4, dilation=2).windows(x, 2)
    with pytest.raises(OptionError, match="^windows take a padded x with lengths, not a Packed"):
        build(cells.GRU(), 3, 4).windows(pack_sequence([x[:, 0]]), 2)
    with pytest.raises(ValueError, match="lengths must be from 0 to 5"):
        build(cells.GRU(), 3, 4).windows(x, 2, lengths=[6, 1])
