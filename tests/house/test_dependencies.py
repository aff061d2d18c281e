"""What is declared is imported, what is imported is declared, each with its reason and its pin."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.source import ROOT, imports, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = {"core": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
PINS = {
    Requirement(line).name: line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
}


def names(requirements: list[str]) -> set[str]:
    """The projects that requirement lines name, spelled in the one canonical way."""
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def brought_in(project: str, extras: frozenset[str]) -> dict[str, bool]:
    """Everything that installing `project` brings in, and whether a pin must fix its version.

    What a project asks for at one exact version (torch its GPU libraries) is fixed already.
    """
    found: dict[str, bool] = {}
    queue, seen = [(project, extras)], set()
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        for need in map(Requirement, importlib.metadata.requires(current[0]) or []):
            if _wanted(need, current[1]):
                name = canonicalize_name(need.name)
                found[name] = found.get(name, False) or not str(need.specifier).startswith("==")
                queue.append((need.name, frozenset(need.extras)))
    return found


def _wanted(need: Requirement, extras: frozenset[str]) -> bool:
    return not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras | {""})


def test_what_is_declared_is_imported_and_the_other_way_round() -> None:
    roots = {name.partition(".")[0] for module in modules() for _, name in imports(module)}
    foreign = roots - set(sys.stdlib_module_names) - {"throughtime"}
    declared = set().union(*(names(lines) for group, lines in GROUPS.items() if group != "dev"))
    assert {canonicalize_name(name) for name in foreign} == declared


@pytest.mark.parametrize("group", GROUPS)
def test_every_dependency_has_its_reason(group: str) -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text().partition("## Coming")[0]
    rows = [row.split("|") for row in page.splitlines() if row.startswith("|")]
    reasons = {word: row[-2].strip() for row in rows for word in re.findall(r"[\w-]+", row[1])}
    assert [name for name in sorted(names(GROUPS[group])) if not reasons.get(name)] == []


def test_pins_are_exact() -> None:
    assert [pin for pin in PINS.values() if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []


def test_everything_a_set_up_brings_in_is_pinned_and_nothing_else() -> None:
    found = brought_in("throughtime", frozenset(PROJECT["optional-dependencies"]))
    pinned = names(list(PINS.values()))
    assert {name for name, open_version in found.items() if open_version} - pinned == set()
    assert pinned - set(found) == set()
