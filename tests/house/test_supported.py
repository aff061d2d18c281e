"""Old Pythons and torches get one sentence, torches that were never tried one warning."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import pytest

from tests.house.source import ROOT, fresh
from throughtime import environment
from throughtime.errors import VersionError


def test_an_old_python_gets_one_sentence() -> None:
    said = (
        "throughtime needs Python 3.11 or newer, got 3.10.13; make an environment with a newer "
        "one: python3.11 -m venv .venv"
    )
    with pytest.raises(VersionError, match=f"^{re.escape(said)}$"):
        environment.check_python((3, 10, 13))
    environment.check_python((3, 11, 0))
    environment.check_python((3, 14, 0))


@pytest.mark.parametrize("found", ["2.8.0", "1.13.1+cu117"])
def test_an_old_torch_gets_one_sentence(found: str) -> None:
    said = (
        f"throughtime needs torch 2.9 or newer, got {found}; upgrade it: "
        f"pip install --upgrade torch"
    )
    with pytest.raises(VersionError, match=f"^{re.escape(said)}$"):
        environment.check_torch(found)


@pytest.mark.parametrize("found", ["2.9.0", "2.13.0+cpu", "2.100.0.dev20290101", "3.0", "unknown"])
def test_another_torch_is_taken(found: str) -> None:
    environment.check_torch(found)


def test_a_torch_that_was_never_tried_is_warned_of() -> None:
    tried = ", ".join(environment.TRIED)
    said = f"^throughtime was tried with torch {tried}, not with 2.99.1; throughtime.check"
    with pytest.warns(UserWarning, match=said):
        environment.warn_of_untried("2.99.1", ())


def test_so_is_one_that_lacks_what_is_used() -> None:
    with pytest.warns(UserWarning, match=r"^torch 2.13.0 lacks torch._C._a, which throughtime"):
        environment.warn_of_untried("2.13.0", ("_C._a",))


@pytest.mark.parametrize("minor", environment.TRIED)
def test_one_that_was_tried_is_not_warned_of(minor: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environment.warn_of_untried(f"{minor}.1+cpu", ())


OLD = "import sys, torch; {old}; import throughtime"


@pytest.mark.parametrize(
    ("old", "said"),
    [
        ("torch.__version__ = '2.8.0'", "throughtime needs torch 2.9 or newer, got 2.8.0; "),
        ("sys.version_info = (3, 10, 13)", "throughtime needs Python 3.11 or newer, got 3.10.13;"),
    ],
)
def test_the_import_ends_with_that_sentence(old: str, said: str) -> None:
    command = [sys.executable, "-c", OLD.format(old=old)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"throughtime.errors.VersionError: {said}")


def test_the_import_warns_once() -> None:
    code = OLD.format(old="import warnings; torch.__version__ = '2.99.0'")
    caught = code.replace("import throughtime", "warnings.simplefilter('always'); seen = []; "
        "warnings.showwarning = lambda *a: seen.append(str(a[0])); import throughtime; "
        "print(len(seen), seen[0])")  # fmt: skip
    assert fresh(caught).startswith("1 throughtime was tried with torch ")
