"""The tasks on published data: the data is the published one, split once, and needs memory."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from tests.tasks.test_memory import made
from throughtime.cli import main
from throughtime.errors import OptionError
from throughtime.tasks import available, published

NAMES = [name for name, kind in available().items() if issubclass(kind, published.PublishedTask)]
SIZES = {"digits": (64, 1283, 257, 257), "mnist1d": (40, 3500, 500, 1000)}
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_whole_apart_and_those_that_are_told(name: str) -> None:
    parts = [made(name).split(split) for split in SPLITS]
    steps, *counts = SIZES[name]
    assert [len(truth) for _, truth in parts] == counts and made(name).steps == steps
    rows = torch.cat([inputs[..., 0].T for inputs, _ in parts])
    assert len(rows.unique(dim=0)) == sum(counts), "no sequence stands in two splits"


def test_digits_are_those_of_scikit_learn_row_by_row() -> None:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    for split, numbers in (("test", (0, 7, 1792)), ("validation", (1, 8)), ("train", (2, 3, 9))):
        inputs, truth = made("digits").split(split)
        for place, number in zip((0, 1, -1), numbers, strict=False):
            if split == "train":
                place = {2: 0, 3: 1, 9: 5}[number]
            image = torch.tensor([p / 16 for row in bundle.images[number] for p in row])
            assert torch.equal(inputs[:, place, 0], image.float())
            assert int(truth[place]) == bundle.target[number]


def test_mnist1d_is_the_published_set_up() -> None:
    parts = [made("mnist1d").split(split) for split in SPLITS]
    values, truth = (torch.cat([p[n] for p in parts], 1 - n) for n in (0, 1))
    assert values.double().mean() == pytest.approx(0, abs=1e-5)
    assert values.double().std(correction=0) == pytest.approx(1, abs=1e-5)
    assert truth.bincount().tolist() == [500] * 10


def test_making_mnist1d_leaves_everybodys_chance_alone() -> None:
    published.make_mnist1d.cache_clear()
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    first = published.make_mnist1d()
    assert (random.random(), np.random.random()) == expected
    published.make_mnist1d.cache_clear()
    assert all(map(torch.equal, first, published.make_mnist1d())), "and is not moved by it"


@pytest.mark.parametrize("name", NAMES)
def test_chance_is_what_the_best_constant_answer_gets(name: str) -> None:
    task = made(name)
    errors = {
        digit: sum(int(d) != digit for d in task.split("test")[1]) / SIZES[name][-1]
        for digit in range(10)
    }
    often = max(range(10), key=lambda digit: task.split("train")[1].tolist().count(digit))
    assert task.chance("test") == {"error": pytest.approx(errors[often])}
    assert 0.85 < min(errors.values()) and task.chance("test")["error"] < 0.92


@pytest.mark.parametrize(("name", "told"), [("digits", 0.875), ("mnist1d", 0.9)])
def test_the_last_step_tells_next_to_nothing(name: str, told: float) -> None:
    """The no-memory score: a table of the last step's value, made on the training split."""
    task = made(name)
    seen, truth = task.split("train")
    ends = seen[-1, :, 0].double().quantile(torch.linspace(0, 1, 11).double())[1:-1]
    table = torch.zeros(10, 10)
    for value, digit in zip(torch.bucketize(seen[-1, :, 0].double(), ends), truth, strict=True):
        table[value, digit] += 1
    seen, truth = task.split("test")
    answers = table.argmax(1)[torch.bucketize(seen[-1, :, 0].double(), ends)]
    assert float((answers != truth).double().mean()) == pytest.approx(told, abs=0.03)
    assert torch.equal(task.hide(seen)[-1], seen[-1]) and not task.hide(seen)[:-1].any()


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_drawn_from_the_training_split_alone(name: str) -> None:
    task, other = made(name), made(name, seed=1)
    known = {tuple(row) for row in task.split("train")[0][..., 0].T.tolist()}
    inputs, truth = task.epoch(1)[3]
    assert {tuple(row) for row in inputs[..., 0].T.tolist()} <= known
    assert inputs.shape == (SIZES[name][0], 32, 1) and truth.shape == (32,)
    assert all(map(torch.equal, task.epoch(1)[3], made(name).epoch(1)[3]))
    assert not torch.equal(inputs, other.epoch(1)[3][0])
    assert not torch.equal(inputs, task.epoch(1)[4][0])


@pytest.mark.parametrize("name", NAMES)
def test_their_length_is_their_own_and_told_to_the_start(name: str) -> None:
    with pytest.raises(OptionError, match=f"length must be left out, since {name} does not read"):
        made(name, length=50)
    state = dict(made(name, cell="lstm", start="timescales", hidden=400).model().named_parameters())
    forget = state["recurrent.bias_ih_l0"][400:800] + state["recurrent.bias_hh_l0"][400:800]
    longest = float((forget.detach().exp() + 1).max())
    assert 2.7 * SIZES[name][0] < longest <= 3 * SIZES[name][0] * 1.001


@pytest.mark.parametrize("hide", [True, False])
@pytest.mark.parametrize(("name", "steps"), [("digits", 250), ("mnist1d", 700)])
def test_it_is_learned_and_not_without_memory(name: str, steps: int, hide: bool) -> None:
    task = made(name, cell="gru", start="timescales", lr=0.01)
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), task.recipe.lr)
    for step in range(steps):
        inputs, truth = task.batch("train", step, 32)
        optimizer.zero_grad()
        task.loss(model, (task.hide(inputs) if hide else inputs, truth)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    inputs, truth = task.split("test")
    with torch.no_grad():
        error = task.measure(model(task.hide(inputs) if hide else inputs), truth)["error"]
    assert error > 0.82 if hide else error < 0.4


def test_it_trains_scores_and_answers_by_the_command_line(tmp_path, capsys) -> None:
    words = "train digits --cell rnn --steps 4 --hidden 8 --threads 1 --out"
    assert main([*words.split(), str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "test: 257 sequences of 64 steps kept out of training" in shown
    assert "share of wrong digits of ten; solved: at most 0.1" in shown
    assert main(["predict", str(tmp_path / "run"), "256"]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "257"]) == 2
    assert "a whole number below 257, got '257'; say, 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("digits", "sklearn.datasets", "scikit-learn"), ("mnist1d", "mnist1d.data", "mnist1d")],
)
def test_without_its_package_the_extra_is_named(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for read in (published.read_digits, published.make_mnist1d):
        read.cache_clear()
    assert main(["train", name, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"error: {package}, which the extra data brings, is needed here and is not installed; "
        "install all of that extra with: pip install 'mnist1d"
    )
    assert not list(tmp_path.iterdir()), "no folder of a run that never began"
