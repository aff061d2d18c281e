"""Building and running what an export wrote."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.cells.test_contract import CELLS
from tests.compiled.own import FiveGates, Kinks
from tests.compiled.uneven import LowRank
from throughtime import Cell, Recurrent

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]

EVERY = [*CELLS, FiveGates(), Kinks(), LowRank(3)]
"""The package's cells, each in several ways, and three of one's own."""

TABLE = list({type(cell): cell for cell in reversed(EVERY)}.values())[::-1]
"""Each of them once; soaks take every one."""


def need(program: str, package: str) -> str:
    """The path of a program; where there is none, the test is skipped and says so."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"there is no {program} here; apt-get install {package}")
    return path


def run(command: Sequence[Any], cwd: Path | None = None) -> str:
    """What a command prints, which must end well."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_of(folder: Path, compiler: str, *flags: str, runner: Sequence[str] = ()) -> str:
    """Builds an export's test with all its sources and objects, runs it, gives what it prints."""
    parts = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".c", ".o")]
    libm = [] if any(p.endswith(".o") for p in parts) else ["-lm"]
    run([compiler, *flags, *parts, *libm, "-o", "tested"], folder)
    return run([*runner, "./tested"], folder)


test_of.__test__ = False  # type: ignore[attr-defined]


def random_layer(cell: Cell, hidden: int, **options: Any) -> nn.Module:
    """A layer whose weights are all random, none of them zero or one."""
    layer = Recurrent(cell, 3, hidden, **options)
    with torch.no_grad():
        for value in layer.parameters():
            value.normal_(0, 0.6 / hidden**0.5)
    return layer
