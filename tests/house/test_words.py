"""No file names a folder of somebody's machine or the host of a package registry."""

from __future__ import annotations

import re

import pytest

from tests.house.source import ROOT, tracked

# Written apart so that this file passes its own test.
FOLDERS = [f"/{name}/" for name in ("work", "root", "home", "opt/wheels", "opt/pypi", "Users")]
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted"),
        ("pythonhosted", "org"),
        ("download", "pytorch"),
        ("registry", "npmjs"),
        ("anaconda", "org"),
    )
]
WORDS = re.compile("|".join(map(re.escape, FOLDERS + HOSTS)))


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for file in tracked():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a binary file says nothing to a reader
            continue
        found += [f"{file.relative_to(ROOT)}: {match.group()}" for match in WORDS.finditer(text)]
    assert found == []


@pytest.mark.parametrize("word", FOLDERS + HOSTS)
def test_such_a_word_is_seen(word: str) -> None:
    assert WORDS.search(f"see {word} for more")
