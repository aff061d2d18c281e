"""docs/support.md says what was run on other Pythons and torches, no more and no less."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as xml

from tests.house.source import ROOT
from throughtime import environment

_spec = importlib.util.spec_from_file_location(
    "try_versions", ROOT / "packaging" / "try_versions.py"
)
assert _spec is not None and _spec.loader is not None
try_versions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(try_versions)

RECORD = json.loads(try_versions.RECORD.read_text())

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="b"/>
<testcase classname="tests.a" name="c"><failure message="m">t</failure></testcase>
<testcase classname="tests.a" name="d[a, b]"><skipped message="no GPU">t</skipped></testcase>
<testcase classname="tests.a" name="e"/>
</testsuite></testsuites>"""


def test_the_page_is_what_the_record_says() -> None:
    assert try_versions.PAGE.read_text(encoding="utf-8") == try_versions.page(RECORD)


def test_every_torch_that_is_not_warned_of_was_tried() -> None:
    pinned = re.findall(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)
    run = [found["torch"] for found in RECORD.values() if "tests" in found]
    minors = {".".join(version.split(".")[:2]) for version in [*run, *pinned]}
    assert minors == set(environment.TRIED)


def test_tests_are_counted() -> None:
    assert try_versions.counts(xml.fromstring(REPORT)) == {
        "passed": 2, "skipped": 1, "reasons": ["d: no GPU"], "failed": ["tests.a::c"],
    }  # fmt: skip


def test_the_page_says_what_failed_and_what_was_not_tried() -> None:
    found = {"passed": 2, "skipped": 1, "reasons": ["no GPU"], "failed": ["tests.a::c"]}
    late = {"out_of_time_seconds": 60.0}
    tests = {"laws": found, "compiled": late}
    about = {"python": "3.11.7", "torch": "2.9.1", "day": "2026-01-02", "machine": "Linux x86_64"}
    lines = try_versions.page({"3.11-2.9.1": {**about, "tests": tests}}).splitlines()
    where = "2026-01-02, Linux x86_64"
    assert f"| 3.11.7 | 2.9.1 | laws | 2 | 1 | 1 | {where} |" in lines
    assert f"| 3.11.7 | 2.9.1 | compiled | not finished in 60 s | | | {where} |" in lines
    assert "| 3.13 | 2.15.0 | not run by `make matrix` yet | | | | |" in lines
    assert "- 3.11-2.9.1: fails: `tests.a::c`" in lines
    assert "- 3.11-2.9.1, laws: skipped: no GPU" in lines


def test_this_python_is_found() -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    assert try_versions.interpreter(version) is not None
    assert try_versions.interpreter("3.1") is None
