"""Any cell in the tasks on files; what is missing and uneven times are inputs of the step."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import throughtime
from tests.main_job.small import small_dictionary
from tests.main_job.test_cli_explain import OWN
from throughtime import cells
from throughtime.cells import available as every_cell
from throughtime.cli import main
from throughtime.errors import OptionError
from throughtime.tasks import find
from throughtime.tasks.classify.items import encode_items, list_sequences
from throughtime.tasks.recipe import execute
from throughtime.tasks.tables.read import read
from throughtime.tasks.task import make_layers, run_layers
from throughtime.train.run import resolve

SMALL: dict[str, Any] = {
    "hidden": 4, "steps": 4, "validate_every": 2, "warmup": 1, "threads": 1, "batch_size": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warnings.filterwarnings("ignore", module="lightning_utilities|pytorch_lightning")


def uneven(rows: int = 150, missing: float = 0.2) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    times = np.cumsum(generator.exponential(1, rows)).round(3)
    values = np.sin(times / 3) + 0.1 * generator.standard_normal(rows)
    gone = generator.random((2, rows)) < missing
    return pl.DataFrame(
        {
            "t": times,
            "y": np.where(gone[0], np.nan, values),
            "x": np.where(gone[1], np.nan, generator.standard_normal(rows)),
        }
    ).fill_nan(None)


def sequences() -> pl.DataFrame:
    parts = []
    for number in range(24):
        frame = uneven(12).with_columns(pl.col("x") + number % 2, kind=pl.lit("ab"[number % 2]))
        parts.append(frame.with_columns(s=pl.lit(f"s{number}"), y=pl.col("y") + 0.01 * number))
    return pl.concat(parts)


BUILT = {"LSTMProjected": "LSTMProjected(3)", "Skip": "Skip(2)"}


@pytest.mark.parametrize("cell", [BUILT.get(name, name) for name in sorted(every_cell())])
def test_every_cell_learns_a_forecast(cell: str) -> None:
    uneven().write_csv("data.csv")
    kind = find("forecast")
    given = SMALL | {"data": "data.csv", "target": "y", "horizon": 2, "cell": cell}
    task = kind(resolve(kind, given))
    model = task.model()
    task.loss(model, task.epoch(0)[0]).backward()
    assert all(p.grad is not None for p in model.parameters())


TEXTS = ("tag", "translate", "pronounce")


@pytest.mark.parametrize("cell", [BUILT.get(n, n) for n in sorted(every_cell()) if n != "GRUD"])
def test_every_cell_tags_and_translates(cell: str) -> None:
    for name in ("tag", "translate"):
        kind = find(name)
        task = kind(resolve(kind, SMALL | {"cell": cell, "layers": 2}))
        model = task.model()
        task.loss(model, task.epoch(0)[0]).backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters()), name
        assert task.answer(model.eval(), ["the old house"])
    memory, state = model.encode(torch.tensor([[2], [3]]))
    given = torch.tensor([[1], [3], [4]])
    steps = []
    for one in given.split(1):
        logits, state = model.decode(one, memory, state)
        steps.append(logits)
    assert torch.allclose(torch.cat(steps), model(torch.tensor([[2], [3]]), given), atol=1e-5)


@pytest.mark.parametrize("name", ["tag", "translate", "pronounce", "classify", "language"])
def test_layers_start_as_asked(name: str) -> None:
    kind = find(name)
    with small_dictionary():
        made = [kind(resolve(kind, SMALL | {"cell": "LSTM", **start})).model() for start in (
            {"start": "orthogonal"}, {"start": "chrono", "horizon": 9}, {"start": "torch"},
        )]  # fmt: skip
    for one, is_so in zip(made, (True, False, False), strict=True):
        layers = [m for m in one.modules() if isinstance(m, throughtime.Recurrent)]
        for layer in layers:
            kept = layer.state_dict()["weight_hh_l0"][: layer.hidden_sizes[0]]
            assert torch.allclose(kept @ kept.T, torch.eye(len(kept)), atol=1e-5) == is_so
    forget = layers[0].cell.gates.index("f")
    for layer in (m for m in made[1].modules() if isinstance(m, throughtime.Recurrent)):
        bias = sum(layer.state_dict()[f"bias_{n}_l0"] for n in ("ih", "hh"))
        bias = bias.unflatten(0, (-1, layer.hidden_sizes[0]))[forget]
        assert bool(((0 <= bias) & (bias <= np.log(8))).all())
    with pytest.raises(OptionError, match="horizon must be 0 or a whole number of at least 3, got"):
        kind(resolve(kind, SMALL | {"start": "timescales", "horizon": 2})).model()
    with pytest.raises(OptionError, match="Elman has no gate that keeps its state"):
        kind(resolve(kind, SMALL | {"start": "forget", "cell": "rnn"})).model()


def test_channels_of_uneven_rows_are_those_by_hand() -> None:
    uneven().write_csv("data.csv")
    kind = find("forecast")
    task = kind(resolve(kind, SMALL | {"data": "data.csv", "target": "y", "horizon": 2}))
    assert task.facts.masked == ["x"] and not task.facts.even
    frame, steps = uneven(), task._windows.steps
    times, seen = frame["t"].to_numpy(), frame["y"].is_not_null().to_numpy()
    since = [1.0]
    for n in range(1, len(times)):
        before = np.flatnonzero(seen[:n])
        since.append((times[n] - times[before[-1]]) / task.facts.step if len(before) else 1.0)
    rows = np.concatenate([[1.0], np.diff(times) / task.facts.step])
    assert np.allclose(steps[:, 1], seen)
    assert np.allclose(np.expm1(steps[:, 2].double().numpy() + np.log(2)), since, atol=1e-5)
    assert np.allclose(np.expm1(steps[:, 3].double().numpy() + np.log(2)), rows, atol=1e-5)
    assert np.allclose(steps[:, 5], frame["x"].is_not_null())


def test_a_cell_that_reads_gaps_is_given_them() -> None:
    uneven().write_csv("data.csv")
    kind = find("forecast")
    given = SMALL | {"data": "data.csv", "target": "y", "horizon": 2, "cell": "grud"}
    task = kind(resolve(kind, given))
    model = task.model()
    read: dict[str, Tensor] = {}
    model.recurrent.register_forward_pre_hook(
        lambda layer, x, how: read.update(how["inputs"]), with_kwargs=True
    )
    inputs, _ = task.epoch(0)[0]
    past = inputs[: task.facts.length]
    model(inputs)
    assert torch.equal(read["mask"], past[..., 1:2])
    assert torch.allclose(read["gap"], torch.expm1(past[..., 2:3] + np.log(2)))
    reference = throughtime.Recurrent(cells.GRUD(), past.shape[-1], 4, backend="reference")
    reference.load_state_dict(model.recurrent.state_dict())
    there = run_layers(model.recurrent, past, read["gap"], read["mask"])[0]
    assert torch.allclose(there, reference(past, inputs=read)[0], atol=1e-5)


def test_sequences_with_gaps_are_read_with_the_time_since() -> None:
    sequences().write_csv("data.csv")
    kind = find("classify")
    given = SMALL | {"data": "data.csv", "label": "kind", "series": "s", "time": "t"}
    task = kind(resolve(kind, given))
    assert task.facts.step > 0 and task.facts.width == 2 * 2 + 2
    items = encode_items(list_sequences(read("data.csv"), task.facts, labelled=True), task.facts)
    frame = sequences().filter(s="s0")
    rows = np.concatenate([[1.0], np.diff(frame["t"].to_numpy()) / task.facts.step])
    assert np.allclose(np.expm1(items.steps[0][:, 5].numpy() + np.log(2)), rows, atol=1e-4)
    grud = kind(resolve(kind, given | {"cell": "GRUD", "directions": 1}))
    grud.loss(grud.model(), grud.epoch(0)[0]).backward()
    with pytest.raises(OptionError, match="which has one direction, got directions 2; give --dir"):
        kind(resolve(kind, given | {"cell": "GRUD"})).model()


def test_a_cell_of_ones_own_is_trained_and_found_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.py").write_text(OWN)
    uneven().write_csv("data.csv")
    flags = "--horizon 2 --hidden 4 --steps 4 --validate-every 2 --batch-size 8"
    command = ["train", "forecast", "--data", "data.csv", "--target", "y", "--cell", "mine.py:Mine"]
    assert main([*command, *flags.split(), "--out", "run"]) == 0
    run = Path("run").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["predict", str(run), "../data.csv"]) == 0
    assert throughtime.load(run).recipe.cell == f"{run.parent / 'mine.py'}:Mine"


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("forecast", {"cell": "lsmt"}, "cell must be one of .*, got 'lsmt'; did you mean LSTM"),
        ("forecast", {"cell": "nowhere.py"}, "nowhere.py"),
        ("language", {"cell": "GRUD"}, "what language has, no direct inputs, and it reads gap"),
        *(
            (task, given, said)
            for task in TEXTS
            for given, said in (
                ({"cell": "GRUD"}, f"what {task} has, no direct inputs, and it reads gap"),
                ({"cell": "lsmt"}, "cell must be one of .*, got 'lsmt'; did you mean LSTM"),
                ({"cell": "nowhere.py"}, "nowhere.py"),
            )
        ),
    ],
)
def test_a_wrong_cell_is_one_sentence(task: str, given: dict[str, Any], said: str) -> None:
    kind = find(task)
    with pytest.raises((OptionError, OSError), match=said):
        kind(resolve(kind, SMALL | given)).model()


@pytest.mark.parametrize("name", ["tag", "translate"])
def test_a_cell_of_ones_own_tags_and_translates(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.py").write_text(OWN)
    flags = "--hidden 4 --steps 4 --validate-every 2 --batch-size 8 --threads 1 --cell mine.py"
    assert main(["train", name, *flags.split(), "--out", "run"]) == 0
    run = Path("run").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["predict", str(run), "the old house"]) == 0
    assert throughtime.load(run).recipe.cell == str(run.parent / "mine.py")


def test_layers_are_those_of_the_recipe() -> None:
    kind = find("classify")
    recipe = resolve(kind, SMALL | {"cell": "lstm_projected(3)", "layers": 2, "merge": "sum"})
    layers = make_layers(recipe, 3, reads=True)
    assert layers.directions == 2 and len(layers.hidden_sizes) == 2
    kind(recipe).model()


def test_half_of_the_rows_are_enough_to_learn_from() -> None:
    frame = uneven(300, 0.0).drop("x")
    half = frame.sample(fraction=0.5, seed=1).sort("t")
    run = throughtime.train("forecast", half, target="y", horizon=2, cell="grud", **SMALL)
    assert len(run.predict(half)) == 2


def test_a_file_that_is_executed_again_has_its_folder_in_the_path_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    for _ in range(3):
        execute(tmp_path / "mine.py")
    assert sys.path.count(str(tmp_path)) == 1
    sys.path.remove(str(tmp_path))
