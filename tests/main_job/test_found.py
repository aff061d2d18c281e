"""A new task or command is one new file and no edit elsewhere; such a task trains and resumes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from throughtime import tasks
from throughtime.cli import commands, main
from throughtime.tasks.task import Task
from throughtime.train.result import load_trained
from throughtime.train.run import read

COMMAND = '''
"""`throughtime greet NAME`: greets."""


def register(commands):
    """Adds the command."""
    commands.add("greet", greet).add_argument("name", metavar="NAME")


def greet(name: str) -> None:
    """Greet somebody."""
    print(f"hello {name}")
'''

TASK = '''
"""Doubling: the smallest task."""

import torch

from throughtime.tasks.task import Example, Score, Task


class Doubling(Task):
    """Learns to double a number."""

    name = "doubling"
    monitor = "error"
    presets = {"quick": {"steps": 600, "lr": 0.1, "validate_every": 200}}

    def model(self):
        return torch.nn.Linear(1, 1)

    def epoch(self, number):
        generator = torch.Generator().manual_seed(self.recipe.seed * 1000 + number)
        return [(torch.rand(9, 1, generator=generator),) for _ in range(7)]

    def loss(self, model, batch):
        return (model(batch[0]) - 2 * batch[0]).square().mean()

    def score(self, model, split):
        with torch.no_grad():
            answer = float(model(torch.tensor([[3.0]])))
        example = Example("3", f"{answer:.1f}", "6", abs(answer - 6) < 0.05)
        return Score(split, "how far from twice 3", 1, {"error": abs(answer - 6)}, (example,))

    def chance(self, split):
        return {"error": 6.0}

    def answer(self, model, items):
        with torch.no_grad():
            return [f"{model(torch.tensor([[float(item)]])).item():.1f}" for item in items]
'''


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a command and one with a task, each in a folder of its package."""
    for package, name, text in ((commands, "greet", COMMAND), (tasks, "doubling", TASK)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
    tasks.available.cache_clear()
    yield
    monkeypatch.undo()
    tasks.available.cache_clear()


def test_a_new_command_is_one_new_file(found: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    assert main(["--help"]) == 0
    assert "Greet somebody." in capsys.readouterr().out


def test_a_new_task_is_one_new_file(
    found: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["train", "doubling", "--threads", "1", "--out", str(folder)]) == 0
    assert "how far from twice 3" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["predict", str(folder), "4", "-5"]) == 0
    assert capsys.readouterr().out == "4\t8.0\n-5\t-10.0\n"
    assert main(["predict", str(folder), ""]) == 2
    assert "what doubling is asked must not be empty" in capsys.readouterr().err
    task, model = load_trained(read(folder))
    assert task.score(model, "test").examples[0].right
    assert isinstance(task, Task)
    assert torch.is_grad_enabled()
