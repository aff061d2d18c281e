"""Runs tests on other Pythons and torches, one environment at a time; `make matrix`.

    python packaging/try_versions.py [PYTHON-TORCH ...]    # as 3.11-2.9.1; none: all of PAIRS

Each pair gets an environment in a temporary folder, several gigabytes, which goes when its tests
are done. What was run stands in docs/support.json, and as a page in docs/support.md.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD, PAGE = ROOT / "docs" / "support.json", ROOT / "docs" / "support.md"

PAIRS = ("3.11-2.9.1", "3.11-2.13.0", "3.11-2.15.0", "3.12-2.14.1", "3.13-2.15.0")
"""The pairs to be tried, Python and torch."""

TESTS = {
    "private names of torch": "tests/house/test_private.py",
    "laws": "tests/laws",
    "drop-ins": "tests/drop_in",
    "compiled": "tests/compiled",
}
"""What is run on each pair, some 7,300 tests in a quarter of an hour."""

NEEDS = (
    "numpy>=2 llvmlite>=0.48 platformdirs>=4 onnx pytest>=9 pytest-timeout hypothesis mpmath "
    "packaging setuptools"
).split()
SECONDS = 3600
"""The most that one row of `TESTS` may take."""


def interpreter(version: str) -> str | None:
    """An interpreter of this minor: of the path, or of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    for candidate in filter(None, candidates):
        asked = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return str(candidate)
    return None


def make(python: str, torch: str, place: Path) -> Path:
    """An environment with this torch and what the tests ask for; its Python."""
    subprocess.run([python, "-m", "venv", place], check=True)
    own = place / "bin" / "python"
    clean = {**os.environ, "PIP_CONSTRAINT": os.devnull, "PIP_NO_COMPILE": "1"}
    install = [own, "-m", "pip", "install", "-q", "--no-cache-dir", f"torch=={torch}", *NEEDS]
    subprocess.run(install, check=True, env=clean)
    return own


def run(python: Path, tests: str, seconds: float = SECONDS) -> dict[str, Any]:
    """How many of some tests pass, fail and are skipped, and the names of those that fail."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
        command += ["--timeout", "300", f"--junitxml={report}", *shlex.split(tests)]
        paths = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "THROUGHTIME_CACHE": folder}
        try:
            done = subprocess.run(command, cwd=ROOT, env=paths, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"out_of_time_seconds": seconds}
        if done.returncode not in (0, 1):  # 1: some failed; else it did not come to run them
            return {"failed": [f"pytest ended with {done.returncode}"]}
        return counts(xml.parse(report).getroot())


def counts(report: xml.Element) -> dict[str, Any]:
    """The same of a report in JUnit's form."""
    cases = list(report.iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    reasons = {
        f"{str(c.get('name')).split('[')[0]}: {c.find('skipped').get('message')}"  # type: ignore[union-attr]
        for c in skipped
    }
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "skipped": len(skipped),
        "reasons": sorted(reasons),
        "failed": sorted(f"{c.get('classname')}::{c.get('name')}" for c in bad),
    }


def try_pair(pair: str) -> dict[str, Any]:
    """What a pair came to: a line of the record."""
    version, torch = pair.split("-")
    python = interpreter(version)
    if python is None:
        return {"untried": f"no Python {version} was found"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            own = make(python, torch, Path(folder) / "venv")
        except subprocess.CalledProcessError as error:
            return {"untried": f"installing torch {torch} ended with {error.returncode}"}
        return {**about(own), "tests": {what: run(own, tests) for what, tests in TESTS.items()}}


def about(python: Path) -> dict[str, str]:
    """Versions, machine and day of what is run by a Python."""
    code = (
        "import json, platform, torch, numpy, llvmlite; print(json.dumps(dict(python="
        "platform.python_version(), torch=torch.__version__, numpy=numpy.__version__, "
        "llvmlite=llvmlite.__version__)))"
    )
    asked = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return {
        **json.loads(asked.stdout),
        "machine": f"{platform.system()} {platform.machine()}",
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def page(record: dict[str, dict[str, Any]]) -> str:
    """The page of a record."""
    lines = [
        "# What was run where",
        "",
        "Written by `make matrix`: each pair gets an environment of its own and runs these parts "
        "of the suite whole.",
        "With the versions of `constraints.txt` the whole suite runs at every change; of the other "
        "pairs, what is not in the table was not run.",
        "Python 3.14 is untried, and so are macOS and Windows: nothing is compiled there, torch's "
        "kernels and the reference compute, and `explain()` says so.",
        "Code for AArch64 has run under emulation, with the bits of x86-64 "
        "([compiler](compiler.md#bits)).",
        "",
        "| Python | torch | what | passed | skipped | failed | when, machine |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for pair in [*PAIRS, *sorted(set(record) - set(PAIRS))]:
        found = record.get(pair, {"untried": "not run by `make matrix` yet"})
        python, torch = (
            found.get("python", pair.split("-")[0]),
            found.get("torch", pair.split("-")[1]),
        )
        if "untried" in found:
            lines.append(f"| {python} | {torch} | {found['untried']} | | | | |")
            continue
        for what, n in found["tests"].items():
            when = f"{found['day']}, {found['machine']}"
            lines.append(f"| {python} | {torch} | {what} | {_counted(n)} | {when} |")
            notes += [f"- {pair}: fails: `{name}`" for name in n.get("failed", [])]
            notes += [f"- {pair}, {what}: skipped: {why}" for why in n.get("reasons", [])]
    return "\n".join([*lines, *(["", "## Failed and skipped", "", *notes] if notes else []), ""])


def _counted(n: dict[str, Any]) -> str:
    if "out_of_time_seconds" in n:
        return f"not finished in {n['out_of_time_seconds']:.0f} s | |"
    return " | ".join(
        str(v) for v in (n.get("passed", 0), n.get("skipped", 0), len(n.get("failed", [])))
    )


def main(pairs: list[str]) -> int:
    """Try pairs and write what came of it; 0 where nothing failed."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for pair in pairs or PAIRS:
        record[pair] = try_pair(pair)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(page(record), encoding="utf-8")
    tests = [n for found in record.values() for n in found.get("tests", {}).values()]
    return int(any(n.get("failed") or "out_of_time_seconds" in n for n in tests))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
