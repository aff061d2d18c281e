"""Builds the sdist and the wheel, and tries the wheel in an environment of its own; `make wheel`.

    python packaging/build_wheel.py [DIST]

The environment lies outside the checkout and has nothing but pip, the wheel, and this Python's
packages behind it for torch and what else the wheel asks for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 2_000_000
MOST_SECONDS = 20.0
BUILD = "import sys; from setuptools import build_meta as b; b.build_{0}(sys.argv[1])"
SMOKE = """
import pathlib, sys, torch, throughtime
assert pathlib.Path(throughtime.__file__).is_relative_to(sys.prefix), throughtime.__file__
torch.manual_seed(0)
theirs, x = torch.nn.LSTM(5, 7), torch.randn(9, 3, 5)
ours = throughtime.from_torch(theirs)
assert "cpu" in ours.explain(), ours.explain()
torch.testing.assert_close(ours(x)[0], theirs(x)[0])
mine, want = (torch.autograd.grad(m(x)[0].sum(), list(m.parameters())) for m in (ours, theirs))
torch.testing.assert_close(mine, want)
throughtime.check(throughtime.cells.GRU())
"""


def build(dist: Path) -> list[Path]:
    """The sdist and the wheel in the folder `dist`, made from a copy of what git knows."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as copy:
        for name in filter(None, listing.stdout.decode().split("\0")):
            target = Path(copy) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        for kind in ("sdist", "wheel"):
            command = [sys.executable, "-c", BUILD.format(kind), str(dist)]
            subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)
    return sorted(dist.iterdir())


def faults(wheel: Path) -> list[str]:
    """What is wrong with a wheel: its kind, size, metadata or page."""
    with zipfile.ZipFile(wheel) as opened:
        name = next(n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(opened.read(name).decode())
    readme = (ROOT / "README.md").read_text(encoding="utf-8").strip()
    checks = {
        f"{wheel.name} must be for any system": wheel.name.endswith("-py3-none-any.whl"),
        f"it has {wheel.stat().st_size:,} bytes, at most {MOST_BYTES:,} are promised": (
            wheel.stat().st_size <= MOST_BYTES
        ),
        "its page must be README.md": str(said.get_payload()).strip() == readme,
        "its page must be Markdown": said["Description-Content-Type"] == "text/markdown",
        "it must say which Pythons": bool(said["Requires-Python"]),
        "it must have a licence": said["License-Expression"] == "BSD-3-Clause",
    }
    return [fault for fault, right in checks.items() if not right]


def install(wheel: Path, place: Path) -> float:
    """Install a wheel into a fresh environment, with this Python's packages behind it; seconds."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None, "the wheel is tried beside torch"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # A line of a .pth adds the folder and reads no .pth there, so an editable install stays out.
    behind = Path(own.stdout.strip()) / "behind.pth"
    behind.write_text(str(Path(torch.origin).parents[1]))
    begun = time.monotonic()
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--ignore-installed", wheel], check=True, cwd=place)
    return time.monotonic() - begun


def smoke(place: Path) -> None:
    """Values, gradients, laws and the command line, run outside the checkout."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for command in (
        [place / "bin" / "python", "-I", "-c", SMOKE],
        [place / "bin" / "throughtime", "cells"],
        [place / "bin" / "throughtime", "explain", "LSTM"],
    ):
        subprocess.run(command, check=True, cwd=place, env=clean, stdout=subprocess.DEVNULL)


def main() -> int:
    """Build, check, install and try; 0 where all is as promised."""
    built = build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
    wheel = next(file for file in built if file.suffix == ".whl")
    found = faults(wheel)
    with tempfile.TemporaryDirectory() as folder:
        seconds = install(wheel, Path(folder).resolve())
        smoke(Path(folder).resolve())
    if seconds > MOST_SECONDS:
        found.append(f"it took {seconds:.0f} s to install, at most {MOST_SECONDS:.0f} are promised")
    for file in built:
        print(f"{file.name}: {file.stat().st_size:,} bytes")
    print(f"installed in {seconds:.1f} s; values, gradients, laws and commands tried")
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
