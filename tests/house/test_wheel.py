"""What a wheel carries: the package whole, data and licence with it, and what it promises."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import throughtime
from tests.house.source import ROOT, tracked
from throughtime import environment

_spec = importlib.util.spec_from_file_location("build_wheel", ROOT / "packaging" / "build_wheel.py")
assert _spec is not None and _spec.loader is not None
build_wheel = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_wheel)


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
    assert said["Requires-Python"] == f">={dotted(environment.OLDEST_PYTHON)}"
    assert said["License-Expression"] == "BSD-3-Clause"
    assert f"torch>={dotted(environment.OLDEST_TORCH)}" in said.get_all("Requires-Dist")
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "throughtime = throughtime.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def test_the_conda_recipe_asks_for_the_same() -> None:
    recipe = (ROOT / "packaging" / "conda" / "recipe.yaml").read_text()
    asked = re.findall(r"^    - (\S+) (>=\S+)$", recipe.partition("  run:")[2], re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [("python", project["requires-python"])]
    needs += [(need.partition(">=")[0], ">=" + need.partition(">=")[2])
              for need in project["dependencies"]]  # fmt: skip
    assert [(name.replace("pytorch", "torch"), version) for name, version in asked] == needs


def test_make_wheel_tells_what_is_wrong(tmp_path: Path, wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    right, wrong = Path(wheel.filename), tmp_path / "throughtime-0-cp311-cp311-linux_x86_64.whl"
    assert build_wheel.faults(right) == []
    with zipfile.ZipFile(wrong, "w") as made:
        made.writestr("x.dist-info/METADATA", "License-Expression: MIT\n\nno page")
    assert build_wheel.faults(wrong) == [
        f"{wrong.name} must be for any system", "its page must be README.md",
        "its page must be Markdown", "it must say which Pythons", "it must have a licence",
    ]  # fmt: skip
