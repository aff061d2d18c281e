"""Rooms that a stranger can walk: pieces the size of an idea, few files a folder, one name each."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house.source import ROOT, Module, fresh, modules

FILE, FUNCTION, FOLDER, SHORT = 400, 30, 14, 60
MODULES = 225
"""Of the whole package; a plug-in is no reason to raise it, a new idea may be."""

PLUG_INS = {
    "cells", "tasks", "cli/commands", "export", "diagnosis/quantities",
    "diagnosis/report/page", "train/study",
}  # fmt: skip
"""Folders where a new thing is a new file."""

# What is longer, how long it may be, and why. A line here that is no longer needed fails too.
LONGER: dict[str, tuple[int, str]] = {}

# Class names that stand twice on purpose: the names of torch.nn, which programs ask for.
TORCHS = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}


def long_pieces(package: Path | None = None) -> dict[str, int]:
    """Length of every file (`path`) and function (`path::name`) above its limit."""
    found = {}
    for module in modules(package) if package else modules():
        lines = len(module.text.splitlines())
        if lines > FILE:
            found[module.path] = lines
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and length(node) > FUNCTION:
                found[f"{module.path}::{node.name}"] = length(node)
    return found


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the last statement, without the docstring's."""
    first = node.body[0]
    said = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
    return node.end_lineno - node.lineno + 1 - said


def crowded(found: list[Module]) -> dict[str, int]:
    """The folders with more modules than FOLDER, plug-in folders aside."""
    count = Counter(module.path.rpartition("/")[0] for module in found)
    return {folder: n for folder, n in count.items() if n > FOLDER and folder not in PLUG_INS}


def prefixed(found: list[Module]) -> list[tuple[str, str]]:
    """Folder and prefix of files that share one, as `flow_a` and `flow_b`: they are a package."""
    shared: dict[tuple[str, str], int] = Counter()
    for module in found:
        folder, _, file = module.path.rpartition("/")
        if folder not in PLUG_INS and "_" in file.strip("_"):
            shared[folder, file.partition("_")[0]] += 1
    return [place for place, n in shared.items() if n > 1 and place[1]]


def named_twice(found: list[Module]) -> dict[str, list[str]]:
    """Class names that stand in more than one file, and where."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in found:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module.path)
    return {name: at for name, at in places.items() if len(at) > 1 and name not in TORCHS}


def unexplained(found: list[Module]) -> list[str]:
    """Short files, no plug-ins, that do not say in their first line why they stand alone."""
    return [
        module.path
        for module in found
        if len(module.text.splitlines()) < SHORT
        and module.path.rpartition("/")[0] not in PLUG_INS
        and not ast.get_docstring(module.tree)
    ]


def circles(found: list[Module]) -> list[set[str]]:
    """Modules that import each other in a circle, those imported inside functions too."""
    names = {module.name for module in found}
    arrows = {module.name: set(_imported(module, names)) for module in found}
    reached = {name: _reached(name, arrows) for name in arrows}
    rings = {frozenset(b for b in reached[a] if a in reached[b]) for a in names if a in reached[a]}
    return [set(ring) for ring in rings]


def _imported(module: Module, names: set[str]) -> Iterator[str]:
    for node in _at_run_time(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                reached = whole if whole in names else node.module
                if reached in names and (reached == whole or reached != module.name):
                    yield reached


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _at_run_time(child)


def _reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [*arrows[start]]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += arrows[name]
    return reached


def test_pieces_are_the_size_of_an_idea() -> None:
    allowed = {piece: lines for piece, (lines, _) in LONGER.items()}
    over = {p: n for p, n in long_pieces().items() if n > allowed.get(p, 0)}
    assert over == {}


def test_no_exception_outlives_its_need() -> None:
    assert set(LONGER) - set(long_pieces()) == set()
    assert all(reason for _, reason in LONGER.values())


def test_folders_are_not_crowded() -> None:
    assert crowded(modules()) == {}


def test_files_that_share_a_prefix_are_a_package() -> None:
    assert prefixed(modules()) == []


def test_a_class_name_stands_once() -> None:
    assert named_twice(modules()) == {}


def test_a_short_file_says_why_it_stands_alone() -> None:
    assert unexplained(modules()) == []


def test_the_package_does_not_grow_rooms_unseen() -> None:
    assert len(modules()) <= MODULES


def test_at_most_one_circle_of_imports() -> None:
    assert len(circles(modules())) <= 1


def test_docs_import_from_two_levels_at_most() -> None:
    deep = re.compile(r"^\s*(?:from|import) (throughtime\.\w+\.\w[\w.]*)", re.M)
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    found = {page.name: deep.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert {page: names for page, names in found.items() if names} == {}


ENTERED = """
import sys, torch, throughtime
lstm, x = throughtime.LSTM(8, 16), torch.randn(20, 4, 8)
entered = set()
def note(frame, event, argument):
    entered.add(frame.f_code.co_filename)
with torch.no_grad():
    lstm(x), lstm(x)
    sys.setprofile(note)
    lstm(x)
    sys.setprofile(None)
print(sum("throughtime" in file for file in entered))
"""
FILES_OF_A_CALL = 20
"""Files of ours that one warm call without gradient enters."""


def test_a_call_walks_through_few_files() -> None:
    assert int(fresh(ENTERED)) <= FILES_OF_A_CALL


def test_a_long_piece_is_seen(tmp_path: Path) -> None:
    body = "\n".join(f"    x{i} = {i}" for i in range(FUNCTION))
    docstring = '    """Says\n\n    much.\n    """'
    (tmp_path / "f.py").write_text(f"def just_right():\n{docstring}\n{body[: body.rfind('    ')]}")
    (tmp_path / "g.py").write_text(f"class C:\n    pass\n\ndef too_long():\n{body}")
    (tmp_path / "h.py").write_text("x = 1\n" * (FILE + 1))
    assert long_pieces(tmp_path) == {"g.py::too_long": FUNCTION + 1, "h.py": FILE + 1}


RING = {"a.py": "from throughtime.b import x", "b.py": "def f(): from throughtime import a"}


@pytest.mark.parametrize(
    ("files", "law", "expected"),
    [
        ({f"a/m{i}.py": "" for i in range(FOLDER + 1)}, crowded, {"a": FOLDER + 1}),
        ({"a/flow_x.py": "", "a/flow_y.py": "", "a/flow.py": ""}, prefixed, [("a", "flow")]),
        ({"a.py": "class C: pass", "b.py": "class C: pass"}, named_twice, {"C": ["a.py", "b.py"]}),
        ({"a.py": "", "b.py": '"""Why."""'}, unexplained, ["a.py"]),
        (RING, circles, [{"throughtime.a", "throughtime.b"}]),
        ({"a.py": "from throughtime import a"}, circles, [{"throughtime.a"}]),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_seen(tmp_path: Path, files: Any, law: Any, expected: Any) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert law(modules(tmp_path)) == expected
