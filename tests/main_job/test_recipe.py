"""The recipe: every field has its help and its rule, and comes back from config.json as it was."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.house.source import ROOT
from throughtime.errors import OptionError, RunError
from throughtime.tasks import available, find
from throughtime.tasks.pronounce import Pronounce
from throughtime.tasks.recipe import CellRecipe, Recipe, parse_option, recipe_from
from throughtime.train.run import (
    begin,
    check_memory,
    count_parameters,
    create,
    go_on,
    read,
    resolve,
)


def test_every_field_says_what_it_is() -> None:
    assert [f.name for f in fields(Recipe) if not f.metadata["help"]] == []


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = CellRecipe(cell="gru", directions=1, lr=1.25e-3, seed=7, clip="value", threads=2)
    assert read(create(tmp_path / "run", recipe).folder).recipe == recipe


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("cell", "lstn", "cell must be one of rnn, gru, lstm, got 'lstn'; did you mean lstm?"),
        ("merge", "sun", "did you mean sum?"),
        ("clip", "Norm", "clip must be one of none, norm, value, got 'Norm'; did you mean norm?"),
        ("directions", 3, "directions must be a whole number of at least 1 and below 3, got 3"),
        ("hidden", 0, "hidden must be a whole number of at least 1, got 0"),
        ("steps", 2.5, "steps must be a whole number of at least 1, got 2.5"),
        ("steps", True, "steps must be a whole number of at least 1, got True"),
        ("lr", 0, "lr must be a finite number above 0, got 0"),
        ("lr", math.nan, "lr must be a finite number above 0, got nan"),
        ("lr", math.inf, "lr must be a finite number above 0, got inf"),
        ("dropout", 1.0, "dropout must be a finite number of at least 0 and below 1, got 1.0"),
        ("seed", -1, "seed must be a whole number of at least 0"),
        ("task", 3, "task must be a text, got 3"),
    ],
)
def test_a_value_outside_its_rule_is_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        replace(Recipe(), **{field: value})
    assert said in str(caught.value)


def test_a_name_that_is_no_field_is_refused_with_the_closest() -> None:
    with pytest.raises(OptionError, match=r"'hiden' is no option of a recipe; did you mean hidden"):
        recipe_from({"hiden": 3})


@pytest.mark.parametrize("field", fields(Recipe), ids=lambda f: f.name)
def test_text_is_read_as_the_field_it_is_for(field) -> None:
    value = getattr(Recipe(), field.name)
    assert parse_option(field, str(value)) == value
    assert type(parse_option(field, str(value))) is type(value)
    assert parse_option(field, "no number") == "no number"


def test_what_is_given_goes_before_the_preset_and_the_preset_before_defaults() -> None:
    full = resolve(Pronounce, {"preset": "full", "hidden": 3})
    assert full.hidden == 3
    assert full.layers == Pronounce.presets["full"]["layers"] != Recipe().layers
    assert full.threads == torch.get_num_threads()


@pytest.mark.parametrize("name", available())
def test_every_task_keeps_the_contract(name: str) -> None:
    kind = find(name)
    assert kind.name == name
    assert kind.__doc__
    for preset in kind.presets:
        assert resolve(kind, {"preset": preset}).preset == preset


def test_an_unknown_task_is_refused_with_the_closest() -> None:
    with pytest.raises(OptionError, match="task must be one of .*, got 'pronunce'; did you mean"):
        find("pronunce")


@pytest.mark.parametrize(
    "content",
    [
        ("{", "must be what this version of throughtime writes, and it is no JSON text; "),
        ("", "it is no JSON text"),
        ("[" * 100_000, "it is no JSON text"),
        ("1" * 5000, "it is no JSON text"),
        ("\udcff", "it is no JSON text"),
        ("[]", "it holds no object but []"),
        ("{}", "it does not say task, preset, cell, "),
        ('{"cel": "gru"}', "'cel' is no option of a recipe; did you mean cell?"),
        ("hidden", "hidden must be a whole number of at least 1, got -4", -4),
        ("hidden", "1 and below 2147483648, got a number of some 400 digits", 10**400),
        ("lr", "lr must be a finite number above 0 and below 2147483648, got a num", 10**400),
        ("lr", "lr must be a finite number above 0, got inf", float("inf")),
        ("steps", "steps must be a whole number of at least 1, got nan", float("nan")),
        ("steps", "steps must be a whole number of at least 1, got 3.0", 3.0),
        ("steps", "steps must be a whole number of at least 1, got True", True),
        ("hidden", "hidden must be a whole number of at least 1, got None", None),
        ("task", "task must be one of adding, ", "forecasts"),
        ("task", "task must be a text, got 5", 5),
        ("cell", "cell must be a text, got ['gru']", ["gru"]),
        ("cell", f"got '{'x' * 59}...", "x" * 10**6),
        ("length", "length must be left out, since pronounce does not read it, got 9", 9),
        ("of_a_newer_version", "'of_a_newer_version' is no option of a recipe", 1),
    ],
    ids=range(22),
)
def test_a_damaged_config_is_told(tmp_path: Path, content: tuple[Any, ...]) -> None:
    name, said, *value = content
    whole = json.dumps(asdict(Recipe()) | dict.fromkeys([name], *value)) if value else name
    (tmp_path / "config.json").write_text(whole, errors="surrogateescape")
    with pytest.raises(RunError) as caught:
        read(tmp_path)
    assert said in str(caught.value)
    assert "restore the file, or train again in another folder" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a link to itself", "a link to nothing"])
def test_a_config_that_is_no_file_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.json"
    make = {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
    }
    make[kind]()
    with pytest.raises(RunError, match=r"config.json cannot be read \(.*\); name the folder that"):
        read(tmp_path)


def test_runs_are_numbered_and_the_newest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="--resume goes on with a run, and runs/ has none of"):
        go_on(Pronounce, None, {})
    for number in range(1, 12):
        with begin(Pronounce, None, {"seed": number}) as run:
            assert run.folder == Path("runs") / f"pronounce-{number}"
    newest = go_on(Pronounce, None, {"seed": 11})
    assert newest.recipe.seed == 11
    with pytest.raises(OptionError, match=r"--seed is 11 in runs/pronounce-11, got 3; leave it"):
        go_on(Pronounce, None, {"seed": 3})


def test_processes_that_begin_at_once_get_a_folder_each(tmp_path: Path) -> None:
    code = """
import os, sys
from throughtime.tasks import find
from throughtime.train.run import begin
os.chdir(sys.argv[1])
begun, go = os.pipe()
children = []
for seed in range(8):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(begun, 1)
        with begin(find("pronounce"), None, {"seed": seed}):
            os._exit(0)
    children.append(child)
os.close(go)
print(*(os.waitpid(child, 0)[1] for child in children))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.stdout.split() == ["0"] * 8, done.stderr
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == [f"pronounce-{n}" for n in range(1, 9)]
    assert sorted(read(folder).recipe.seed for folder in folders) == list(range(8))


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="a new run needs a folder that is not there yet or empty"):
        create(tmp_path, Recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the run folder .* must be writable, and it is not"):
        create(tmp_path / "file" / "run", Recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_config_is_plain_json(tmp_path: Path) -> None:
    run = create(tmp_path / "run", Recipe())
    assert json.loads((run.folder / "config.json").read_text()) == asdict(Recipe())


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize(("cell", "layers"), [("rnn", 1), ("gru", 2), ("lstm", 2)])
def test_the_parameters_of_a_model_are_known_before_it_is_made(
    name: str, cell: str, layers: int
) -> None:
    kind = find(name)
    for hidden in (2, 4, 10, 34):
        task = kind(resolve(kind, {"cell": cell, "layers": layers, "hidden": hidden}))
        assert count_parameters(task) == sum(p.numel() for p in task.model().parameters())


def test_a_machine_that_can_hold_a_model_may_be_too_small_to_train_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Pronounce(resolve(Pronounce, {}))
    bytes = 4 * count_parameters(task)
    for there, training, fits in (
        (4 * bytes, True, True), (4 * bytes - 1, True, False),
        (bytes, False, True), (bytes - 1, False, False),
    ):  # fmt: skip
        monkeypatch.setattr("throughtime.train.run._memory_bytes", lambda there=there: there)
        if fits:
            check_memory(task, training)
        else:
            with pytest.raises(
                OptionError, match="GiB of memory, and it needs at least 0.0 with h"
            ):
                check_memory(task, training)
