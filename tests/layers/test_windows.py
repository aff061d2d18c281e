"""windows(): the whole sequence in value; in gradient, cut exactly at every k-th step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_sequence

from tests.layers.own import Decaying, decaying
from tests.layers.plain import agree, build, flat, gru, lstm, plain, random
from tests.layers.test_options import start
from throughtime import GRU, cells
from throughtime.errors import OptionError

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


@pytest.mark.parametrize("k", [0, -1, True, 2.0, None])
def test_bad_k(k: Any) -> None:
    with pytest.raises(OptionError, match="^k must be a positive number of steps, got"):
        build(cells.GRU(), 3, 4).windows(random(5, 2, 3), k)


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
