"""The command line with the core alone: what needs no training works, the rest says its cure."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.house.source import ROOT
from tests.main_job.test_cli_explain import OWN
from throughtime.errors import missing_extra
from throughtime.train.run import Run

WITHOUT = """
import sys
gone = {"lightning_fabric", "lightning_utilities", "torchmetrics", "safetensors", "rich", "plotly",
        "pytorch_lightning", "polars", "typer", "pydantic", "sklearn", "mnist1d"}
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
from throughtime.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command where no extra is installed."""
    command = [sys.executable, "-W", "error", "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)


def test_what_needs_no_training_works(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    starts = {
        ("cells",): "CoRNN ",
        ("explain", "lstm"): "LSTM(): cpu\n",
        ("explain", "mine.py:Mine", "--llvm"): "; ModuleID",
        ("check", "mine.py"): "Mine(scale=1.0): 11 laws hold\n",
        ("cache",): "folder ",
        ("--help",): "usage: throughtime ",
        ("--version",): "throughtime ",
        ("train", "latch", "--help"): "usage: throughtime train TASK [options]\n",
        ("study", "--help"): "usage: throughtime study --task TASK [options]\n",
    }
    for arguments, start in starts.items():
        done = run(*arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(start) and done.stderr == ""


def wanted(extra: str) -> list[Requirement]:
    needs = [Requirement(need) for need in metadata.requires("throughtime") or []]
    return [need for need in needs if need.marker and need.marker.evaluate({"extra": extra})]


def test_what_needs_an_extra_says_how_to_install_it(trained_run: Run, tmp_path: Path) -> None:
    commands = {
        ("train", "latch"): "train",
        ("train", "digits"): "data",
        ("train", "pronounce", "--resume", "--out", trained_run.folder): "train",
        ("predict", trained_run.folder, "time"): "train",
        ("evaluate", trained_run.folder): "train",
        ("study", "--task", "latch", "--seeds", "1", "--cells", "rnn"): "train",
    }
    for arguments, extra in commands.items():
        done = run(*arguments, folder=tmp_path)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
        assert f", which the extra {extra} brings, is needed here and is not" in done.stderr
        _, command = done.stderr.split("install all of that extra with: ")
        assert command.startswith("pip install ")
        parts = [Requirement(part) for part in re.findall(r"'([^']*)'", command)]
        assert {(p.name, p.specifier) for p in parts} == {
            (p.name, p.specifier) for p in wanted(extra)
        }
        assert not list(tmp_path.iterdir()), "no folder of a run that never began"


def test_a_checkout_that_nobody_installed_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nowhere)
    said = str(missing_extra("plotly", "train"))
    assert said.endswith("install all of that extra with: pip install '.[train]', in the checkout")
