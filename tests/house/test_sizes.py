"""Small pieces: a file of at most 400 lines, a function of at most 30, its docstring aside."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house.source import modules

FILE, FUNCTION = 400, 30

# What is longer, how long it may be, and why. A line here that is no longer needed fails too.
LONGER: dict[str, tuple[int, str]] = {}


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


def test_pieces_are_small() -> None:
    allowed = {piece: lines for piece, (lines, _) in LONGER.items()}
    over = {p: n for p, n in long_pieces().items() if n > allowed.get(p, 0)}
    assert over == {}


def test_no_exception_outlives_its_need() -> None:
    assert set(LONGER) - set(long_pieces()) == set()
    assert all(reason for _, reason in LONGER.values())


def test_a_long_piece_is_seen(tmp_path: Path) -> None:
    body = "\n".join(f"    x{i} = {i}" for i in range(FUNCTION))
    docstring = '    """Says\n\n    much.\n    """'
    (tmp_path / "f.py").write_text(f"def just_right():\n{docstring}\n{body[: body.rfind('    ')]}")
    (tmp_path / "g.py").write_text(f"class C:\n    pass\n\ndef too_long():\n{body}")
    (tmp_path / "h.py").write_text("x = 1\n" * (FILE + 1))
    assert long_pieces(tmp_path) == {"g.py::too_long": FUNCTION + 1, "h.py": FILE + 1}
