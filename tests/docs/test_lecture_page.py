"""docs/lecture.md against what it names: its tests exist, its figures, and the README's, hold."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from docs import lecture_figures
from tests.house.source import ROOT

PAGE = (ROOT / "docs" / "lecture.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A figure of the page is a number and behind it, in a comment that is not shown, its name.
MARKED = re.compile(r"([-\d.,]+(?:e-?\d+)?)\s*<!-- ([\w.]+) -->")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def computed(group: str) -> dict[str, float]:
    return next(g for g in lecture_figures.GROUPS if g.__name__ == group)()


@pytest.mark.parametrize("group", [g.__name__ for g in lecture_figures.GROUPS])
def test_the_pages_figures_are_those_computed(group: str) -> None:
    found = computed(group)
    marked = [(n, float(v.replace(",", ""))) for v, n in MARKED.findall(PAGE + README)]
    ours = [(name, value) for name, value in marked if name in found]
    assert ours, f"the page shows no figure of {group}"
    for name, value in ours:
        tolerance = lecture_figures.TOLERANCE[name.partition(".")[0]]
        assert value == pytest.approx(found[name], rel=tolerance, abs=0), name


def test_every_figure_of_the_page_is_computed_somewhere() -> None:
    everything = {name for g in lecture_figures.GROUPS for name in computed(g.__name__)}
    marked = MARKED.findall(PAGE + README)
    assert {name for _, name in marked} - everything == set()
    assert (PAGE + README).count("<!--") == len(marked), "a mark without a number before it"


def test_every_statement_names_a_test_that_exists() -> None:
    statements = re.findall(r"^\d+\. .*?(?=^\d+\. |^#|\Z)", PAGE, re.M | re.S)
    assert len(statements) >= 20
    for statement in statements:
        assert NAMED.search(statement) or "shown by a later instrument" in statement, statement
    missing = [f"{file}::{name}" for file, name in NAMED.findall(PAGE) if not exists(file, name)]
    assert missing == []


def test_no_test_of_the_lecture_is_left_out() -> None:
    named = {name for _, name in NAMED.findall(PAGE)}
    for file in ("test_lecture.py", "test_lecture_cells.py", "test_lecture_figures.py"):
        assert functions(f"tests/docs/{file}") - named == set()


def exists(file: str, name: str) -> bool:
    return (ROOT / file).exists() and name in functions(file)


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = (n.name for n in tree.body if isinstance(n, ast.FunctionDef))
    return {name for name in defined if name.startswith("test_")}
