"""A layer computes where its weights are, whatever torch's default device is."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from throughtime import GRU, LSTM, Cell, Recurrent, cells, check, tasks
from throughtime.tasks.recipe import Recipe

T, B, I, H = 5, 2, 3, 6
LENGTHS = torch.tensor([3, 5])
RESET = torch.zeros(T, B, dtype=torch.bool).index_fill_(0, torch.tensor(2), True)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "lengths": ({}, {"lengths": LENGTHS}),
    "starts": ({}, {"starts": [0, 2]}),
    "reset": ({"learn_initial": True, "clip_gradient": 0.1}, {"reset": RESET}),
    "checkpoints": ({"checkpoint_every": 2}, {}),
    "ragged checkpoints": ({"checkpoint_every": 2}, {"lengths": LENGTHS}),
    "dilated": ({"dilation": 2}, {}),
    "masks": ({"recurrent_dropout": 0.3, "zoneout": 0.2, "weight_dropout": 0.1}, {}),
}
ON_CPU = """
import torch, throughtime
{first}
torch.set_default_device("meta")
layer = throughtime.GRU(4, {hidden}, device="cpu")
y = layer(torch.randn(5, 2, 4, device="cpu"))[0]
print(bool(y.isfinite().all() and y.abs().max() > 0))
"""


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_computes_where_its_weights_are(backend: str, case: str) -> None:
    options, given = CASES[case]
    layer = Recurrent(cells.LSTM(), I, H, bidirectional=True, backend=backend, **options)
    x = torch.randn(T, B, I)

    def run() -> list[torch.Tensor]:
        torch.manual_seed(1)
        y, state = layer(x, **given)
        results = [y, *(v for part in state for v in part)]
        return [*results, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

    expected = run()
    with torch.device("meta"):
        found = run()
    assert_close(found, expected, rtol=0, atol=0)


def test_steps_of_a_stream_and_rows_that_begin_again() -> None:
    layer, x = LSTM(I, H), torch.randn(T, B, I)
    plain, stream = layer.stream(batch=B), layer.stream(batch=B)
    expected = [plain(x[0])]
    plain.reset(rows=torch.tensor([1]))
    expected.append(plain(x[1]))
    with torch.device("meta"):
        found = [stream(x[0])]
        stream.reset(rows=[1])
        found.append(stream(x[1]))
    assert_close(found, expected, rtol=0, atol=0)


def test_laws_are_held_on_the_processor() -> None:
    with torch.device("meta"):
        assert "reset_is_two_sequences" in check(cells.GRU()).laws


@pytest.mark.parametrize(
    ("first", "hidden"),
    [("", 8), ("throughtime.GRU(4, 8)(torch.randn(5, 2, 4))", 2000)],
    ids=["first call", "first large call"],
)
def test_what_a_process_makes_once_is_made_on_the_processor(first: str, hidden: int) -> None:
    program = ON_CPU.format(first=first, hidden=hidden)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


class Counter(Cell):
    """Adds what it reads: without a parameter of its own."""

    gates = ("h",)
    state = ("h",)
    inputs = {"u": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Tensor]:
        return (s.h + a.u,)


def test_a_layer_without_parameters() -> None:
    layer = Recurrent(Counter(), I, H)
    assert not list(layer.parameters())
    with torch.device("meta"):
        ((state,),) = layer.initial_state(B)
    assert_close(state, torch.zeros(1, B, H), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adding", "copy", "latch", "order", "parity"])
def test_sequences_of_tasks_are_drawn_on_the_processor(name: str) -> None:
    task = tasks.find(name)(Recipe(task=name, length=40))
    expected = task.epoch(0)[3]
    with torch.device("meta"):
        found = task.epoch(0)[3]
    assert_close(found, expected, rtol=0, atol=0)


def test_both_kinds_of_packed_rows() -> None:
    layer, x = GRU(I, H), torch.nn.utils.rnn.PackedSequence(torch.randn(3, I), torch.tensor([2, 1]))
    reset = torch.zeros(2, 2, dtype=torch.bool)
    expected = [layer(x)[0].data, layer(x, reset=reset)[0].data]
    with torch.device("meta"):
        found = [layer(x)[0].data, layer(x, reset=reset)[0].data]
    assert_close(found, expected, rtol=0, atol=0)
