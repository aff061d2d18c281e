"""The memory tasks: right answers by hand, chance from the data, nothing to learn when hidden."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from throughtime.cli import main
from throughtime.errors import DataError, OptionError
from throughtime.tasks import available, find
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.published import PublishedTask
from throughtime.tasks.recipe import Recipe

NAMES = [
    name
    for name, kind in available().items()
    if issubclass(kind, MemoryTask) and not issubclass(kind, PublishedTask)
]


def made(name: str, **values: object) -> MemoryTask:
    """A task with its preset and these values."""
    kind = find(name)
    task = kind(Recipe(**{**kind.presets["quick"], "task": name, "threads": 1, **values}))
    assert isinstance(task, MemoryTask)
    return task


def latch(rows: Tensor) -> list[int]:
    return [int(rows[0, 0] > 0)]


def adding(rows: Tensor) -> list[float]:
    return [sum(float(value) for value, mark in rows.tolist() if mark == 1)]


def order(rows: Tensor) -> list[int]:
    seen = [row.index(1) for row in rows.tolist() if row.index(1) < 2]
    return [{(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}[tuple(seen)]]


def parity(rows: Tensor) -> list[int]:
    return [sum(bit > 0 for (bit,) in rows.tolist()[: t + 1]) % 2 for t in range(len(rows))]


def copy(rows: Tensor) -> list[int]:
    said = [row.index(1) for row in rows.tolist()]
    assert said.count(9) == 1 and said[-11] == 9
    return [8] * (len(said) - 10) + said[:10]


BY_HAND = {"latch": latch, "adding": adding, "order": order, "parity": parity, "copy": copy}


def test_every_memory_task_is_told_by_hand() -> None:
    assert sorted(BY_HAND) == NAMES


@pytest.mark.parametrize("length", [4, 7, 30])
@pytest.mark.parametrize("name", NAMES)
def test_truth_is_what_a_plain_loop_finds(name: str, length: int) -> None:
    inputs, truth = made(name, length=length).batch("train", 3, 6)
    for n in range(6):
        by_hand = torch.tensor(BY_HAND[name](inputs[:, n]))
        told = truth[..., n].reshape(-1)
        assert torch.allclose(told, by_hand.to(told.dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["latch", "order", "parity", "adding"])
def test_chance_is_what_the_best_constant_answer_gets(name: str) -> None:
    task = made(name, length=10)
    truth = task.batch("test", 0, 20000)[1].flatten()
    if name == "adding":
        best = float(truth.double().var())
    else:
        best = 1 - float(truth.bincount().max()) / len(truth)
    assert task.chance("test")[task.monitor] == pytest.approx(best, abs=0.015)


def test_chance_of_copy_is_the_entropy_of_its_symbols() -> None:
    task = made("copy", length=30)
    truth = task.batch("test", 0, 4000)[1]
    shares = [step.bincount(minlength=9).double() / len(step) for step in truth]
    entropy = sum(float(torch.special.entr(share).sum()) for share in shares) / len(shares)
    assert task.chance("test")["nats"] == pytest.approx(entropy, abs=1e-3)
    assert task.chance("test")["nats"] == pytest.approx(10 * math.log(8) / 50)


@pytest.mark.parametrize("name", NAMES)
def test_hiding_changes_nothing_given_and_is_blind_to_the_answer(name: str) -> None:
    task = made(name, length=8)
    inputs, _ = task.batch("train", 0, 5)
    before = inputs.clone()
    hidden = task.hide(inputs)
    assert torch.equal(inputs, before) and not torch.equal(hidden, inputs)
    assert hidden.shape == inputs.shape


def learned(name: str, hide: bool, steps: int = 250) -> float:
    """The metric on the test split after some steps, with or without what tells the answer."""
    task = made(name, length=6, start="orthogonal", cell="rnn", lr=0.01)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), task.recipe.lr)
    for step in range(steps):
        inputs, truth = task.batch("train", step, 32)
        optimizer.zero_grad()
        task.loss(model, (task.hide(inputs) if hide else inputs, truth)).backward()
        optimizer.step()
    inputs, truth = task.batch("test", 0, 2000)
    with torch.no_grad():
        answers = model(task.hide(inputs) if hide else inputs)
    return task.measure(answers, truth)[task.monitor]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_hidden_cannot_be_learned(name: str) -> None:
    chance = made(name, length=6).chance("test")[find(name).monitor]
    assert learned(name, hide=True) > 0.9 * chance


@pytest.mark.parametrize("name", [name for name in NAMES if name != "copy"])  # too slow to learn
def test_what_is_shown_can_be_learned(name: str) -> None:
    chance = made(name, length=6).chance("test")[find(name).monitor]
    assert learned(name, hide=False) < 0.8 * chance


@pytest.mark.parametrize("name", NAMES)
def test_batches_hang_on_seed_and_number_alone(name: str) -> None:
    task, other = made(name, length=9), made(name, length=9, seed=1)
    last = task.epoch(2)[99]
    assert all(map(torch.equal, last, made(name, length=9).epoch(2)[99]))
    assert not torch.equal(last[0], other.epoch(2)[99][0])
    assert not torch.equal(last[0], task.epoch(2)[98][0])
    assert all(map(torch.equal, task.batch("test", 0, 4), other.batch("test", 0, 4)))
    with pytest.raises(IndexError):
        task.epoch(0)[100]


@pytest.mark.parametrize(
    ("name", "told"),
    [("latch", 0.02), ("adding", 0.02), ("order", 0.02), ("parity", 0.02), ("copy", 0.0866434)],
)
def test_the_line_of_solved_is_the_one_of_the_page(name: str, told: float) -> None:
    """For copy half of 10 ln 8 / 120."""
    assert made(name).line() == pytest.approx(told)


def test_the_start_is_the_one_of_the_recipe() -> None:
    keeps = made("latch", cell="lstm", start="timescales", length=50, horizon=20).model()
    state = dict(keeps.named_parameters())
    forget = state["recurrent.bias_ih_l0"][32:64] + state["recurrent.bias_hh_l0"][32:64]
    taus = forget.exp() + 1
    assert 2 <= float(taus.detach().min()) and float(taus.detach().max()) <= 20.01
    with pytest.raises(OptionError, match="no gate that keeps its state"):
        made("latch", cell="rnn", start="chrono").model()


def test_a_memory_task_trains_and_answers(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    words = "train latch --cell rnn --start orthogonal --length 10 --steps 200 --threads 1 --out"
    assert main([*words.split(), str(folder)]) == 0
    assert "share of wrong signs" in capsys.readouterr().out
    assert main(["predict", str(folder), "0", "1", "2"]) == 0
    bits = made("latch", length=10).batch("test", 0, 512)[1]
    said = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert said == [str(int(bit)) for bit in bits[:3]]
    task = made("latch", length=10)
    with pytest.raises(DataError, match="whole number below 512, got 'x'; say, 0"):
        task.answer(task.model().eval(), ["x"])
