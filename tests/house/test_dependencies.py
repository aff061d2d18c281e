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
EXTRAS = frozenset(PROJECT["optional-dependencies"])
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
HEADING = "# What the extra {} brings in beside those.\n"
APART = ("cluster", "bench")  # installed by those who ask for them alone, in this order
# What is imported under another name than it is installed by.
OTHER_NAME = {"sklearn": "scikit-learn"}
PINS = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]


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
    groups = [lines for group, lines in GROUPS.items() if group not in ("dev", "bench")]
    assert foreign(roots) == set().union(*map(names, groups))


def test_what_benchmarks_import_is_declared_and_the_other_way_round() -> None:
    found = modules(ROOT / "benchmarks")
    roots = {name.partition(".")[0] for module in found for _, name in imports(module)}
    declared = names(GROUPS["bench"])
    allowed = declared | names(GROUPS["core"]) | names(GROUPS["dev"])
    assert declared <= foreign(roots) <= allowed


def foreign(roots: set[str]) -> set[str]:
    """The projects behind imported names, Python's own and ours aside."""
    ours = {"throughtime", "benchmarks"}
    found = roots - set(sys.stdlib_module_names) - ours
    return {canonicalize_name(OTHER_NAME.get(name, name)) for name in found}


@pytest.mark.parametrize("group", GROUPS)
def test_every_dependency_has_its_reason(group: str) -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text().partition("## Coming")[0]
    rows = [row.split("|") for row in page.splitlines() if row.startswith("|")]
    reasons = {word: row[-2].strip() for row in rows for word in re.findall(r"[\w-]+", row[1])}
    assert [name for name in sorted(names(GROUPS[group])) if not reasons.get(name)] == []


def test_pins_are_exact() -> None:
    assert [pin for pin in PINS if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []


def pinned(part: str) -> set[str]:
    """The projects that lines of constraints.txt pin."""
    return names([line for line in part.splitlines() if not line.startswith("#")])


def test_everything_a_set_up_brings_in_is_pinned_and_nothing_else() -> None:
    found = brought_in("throughtime", EXTRAS - set(APART))
    pins = pinned(CONSTRAINTS.partition(HEADING.format(APART[0]))[0])
    assert {name for name, open_version in found.items() if open_version} - pins == set()
    assert pins - set(found) == set()


@pytest.mark.parametrize("extra", APART)
def test_so_is_what_an_extra_brings_in_that_stands_apart(extra: str) -> None:
    """Apart from the rest, since a set-up to work on the package leaves it out."""
    try:
        found = brought_in("throughtime", EXTRAS - set(APART) | {extra})
    except importlib.metadata.PackageNotFoundError as missing:
        pytest.skip(f"{missing.name} not installed; pip install 'throughtime[{extra}]'")
    usual = set(brought_in("throughtime", EXTRAS - set(APART)))
    part = CONSTRAINTS.partition(HEADING.format(extra))[2]
    pins = pinned(part.partition("# What the extra")[0])
    assert pins == {n for n, open_version in found.items() if open_version and n not in usual}
