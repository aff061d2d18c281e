"""What a wheel carries: the package whole, data and licence with it, and what it promises."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import throughtime
from tests.house.source import ROOT, tracked
from throughtime import supported


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of what git knows, in a folder of its own."""
    copy = tmp_path_factory.mktemp("source")
    for file in tracked():
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(copy.glob("*.whl")))


def test_it_carries_the_whole_package(wheel: zipfile.ZipFile) -> None:
    source = {file.relative_to(ROOT / "src").as_posix() for file in sources()}
    carried = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert carried == source


def sources() -> list[Path]:
    """Every file of the package that git knows."""
    return [file for file in tracked() if ROOT / "src" in file.parents]


def test_it_promises_what_was_run(wheel: zipfile.ZipFile) -> None:
    info = f"throughtime-{throughtime.__version__}.dist-info"
    said = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert said["Version"] == throughtime.__version__
    assert said["Requires-Python"] == f">={dotted(supported.OLDEST_PYTHON)}"
    assert said["License-Expression"] == "BSD-3-Clause"
    assert f"torch>={dotted(supported.OLDEST_TORCH)}" in said.get_all("Requires-Dist")
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "throughtime = throughtime.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
