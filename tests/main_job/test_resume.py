"""Killed with SIGKILL anywhere and resumed: the bits of the run that was not killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from tests.house.source import ROOT
from tests.main_job.small import TINY, small_dictionary
from throughtime.tasks.recipe import Recipe
from throughtime.train.loop import fit
from throughtime.train.run import read
from throughtime.train.storage import read_checkpoint

KILLED = -9

# Two layers and 30 steps: dropout between layers, three validations, more than one pass.
RECIPES = {
    "lstm": Recipe(**{**TINY, "layers": 2, "steps": 30}),
    "gru": Recipe(**{**TINY, "cell": "gru", "clip": "value", "clip_threshold": 0.05}),
    "stops early": Recipe(
        **{**TINY, "steps": 60, "validate_every": 4, "patience": 2, "lr": 1e-6, "dropout": 0.5}
    ),
}


def train(runs: Mapping[Path, tuple[Recipe, Sequence[Any]]]) -> dict[Path, list[int]]:
    """Trains each run, killed at its moments in turn and then to the end; the exit codes."""
    asked = [
        {"folder": str(folder), "recipe": asdict(recipe), "moments": list(moments)}
        for folder, (recipe, moments) in runs.items()
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.main_job.killed"],
        input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes: list[list[int]] = json.loads(done.stdout)
    assert all(one[-1] == 0 for one in codes), done.stderr
    return dict(zip(runs, codes, strict=True))


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves behind, the seconds aside."""
    state = read_checkpoint(read(folder))
    assert state is not None
    for key in ("bytes", "wall", "cpu"):
        del state["journal"][key]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": (folder / "weights.safetensors").read_bytes(),
        "state": state,
        "rows": [{k: v for k, v in row.items() if "seconds" not in k} for row in rows],
    }


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, tensors and what holds them."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# Inside and around each thing that happens once a checkpoint; steps before, on and between them.
MOMENTS = [
    ("step", 1, 0),
    ("step", 5, 1),
    ("write", 1, 1),
    ("write", 2, 1),
    ("fsync", 2, 0),
    ("replace", 2, 0),
    ("replace", 3, 0),
    ("replace", 3, 1),
    ("validation", 1, 0),
    ("validation", 1, 1),
    ("fsync", 5, 1),
    ("replace", 4, 1),
]


def _seconds(draw: random.Random, count: int) -> list[tuple[str, float, int]]:
    return [("seconds", draw.expovariate(3), 0) for _ in range(count)]


@dataclass(frozen=True)
class Trained:
    """The folders of runs by what was done to them, and how their processes ended."""

    folders: dict[str, Path]
    codes: dict[Path, list[int]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All runs of this file, in one program: importing takes longest."""
    moments: dict[str, tuple[str, Sequence[Any]]] = {
        **{name: (name, []) for name in RECIPES},
        "lstm killed": ("lstm", MOMENTS),
        "gru killed": ("gru", random.Random(1).sample(MOMENTS, 3)),
        "stops early killed": ("stops early", [("step", 6, 1), ("validation", 2, 1)]),
        "lstm killed from outside": ("lstm", _seconds(random.Random(2), 3)),
        "gru again": ("gru", []),
        "gru with another seed": ("gru", []),
    }
    place = tmp_path_factory.mktemp("resume")
    folders = {name: place / name for name in moments}
    asked = {folders[name]: (RECIPES[recipe], when) for name, (recipe, when) in moments.items()}
    other = folders["gru with another seed"]
    asked[other] = (replace(RECIPES["gru"], seed=1), [])
    return Trained(folders, train(asked))


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_resumes_to_the_same_bits(name: str, runs: Trained) -> None:
    killed = runs.folders[f"{name} killed"]
    assert set(runs.codes[killed][:-1]) == {KILLED}
    assert same(outcome(killed), outcome(runs.folders[name]))


def test_killed_from_outside_at_any_second(runs: Trained) -> None:
    killed = runs.folders["lstm killed from outside"]
    assert KILLED in runs.codes[killed]
    assert same(outcome(killed), outcome(runs.folders["lstm"]))


def test_the_same_recipe_gives_the_same_run_and_another_seed_another(runs: Trained) -> None:
    first, again, other = (
        outcome(runs.folders[name]) for name in ("gru", "gru again", "gru with another seed")
    )
    assert same(first, again)
    assert first["weights"] != other["weights"]
    assert first["rows"] != other["rows"]


def test_a_finished_run_changes_nothing_when_resumed(runs: Trained, tmp_path: Path) -> None:
    folder = Path(copytree(runs.folders["gru"], tmp_path / "run"))
    with small_dictionary():
        fit(read(folder))
    assert same(outcome(folder), outcome(runs.folders["gru"]))


@pytest.mark.soak
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("name", RECIPES)
def test_killed_again_and_again(name: str, runs: Trained, tmp_path: Path) -> None:
    draw = random.Random(name)
    calls = ("step", "write", "fsync", "replace", "validation")
    asked = {}
    for number in range(20):
        chosen = [(draw.choice(calls), draw.randint(1, 9), draw.randint(0, 1)) for _ in range(6)]
        moments = [*chosen, *_seconds(draw, 6)]
        draw.shuffle(moments)
        asked[tmp_path / str(number)] = (RECIPES[name], moments)
    codes = train(asked)
    # A fast process ends before some of its moments come; three kills a run must have hit.
    assert sum(one.count(KILLED) for one in codes.values()) >= 20 * 3
    for folder in asked:
        assert same(outcome(folder), outcome(runs.folders[name]))
