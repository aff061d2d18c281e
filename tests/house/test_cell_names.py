"""Only cells/ knows the cells by name; a new one is a new file and no edit elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.house.source import Module, modules
from throughtime import cells

# Files (patterns of paths) that must name a cell, and why.
MAY_NAME: dict[str, str] = {
    "__init__.py": "the public names, spelled out",
    "compat.py": "subclasses of torch.nn's layers, under torch's names",
    "backends/torch_kernels.py": "names torch's layers: what a cell's torch_equivalent may say",
    "layers/drop_in/*.py": "the drop-ins: they bear the names of torch.nn's layers",
    "export/operators.py": "ONNX's three operators bear these names",
    "export/onnx/*.py": "and so do its graphs",
    "export/checkpoints.py": "so do layers of Flax, and of torch in files of weights",
    "export/keras.py": "and of Keras",
    "export/write_keras.py": "which are written too",
    "tasks/recipe.py": "spells out what --cell takes and which cell each word means",
}


def names_said(module: Module) -> Iterator[tuple[int, str]]:
    """Line and text of every identifier and string literal; docstrings are prose and pass."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, alias.name
                yield node.lineno, alias.asname or alias.name


def cells_named(found: list[Module]) -> dict[str, list[str]]:
    """For each file outside cells/ that names a cell: the lines where it does."""
    known = {name.lower() for name in cells.available()}
    said: dict[str, list[str]] = {}
    for module in found:
        if module.layer != "cells":
            for line, name in names_said(module):
                if name.lower() in known:
                    said.setdefault(module.path, []).append(f"{line}: {name}")
    return said


def test_only_cells_knows_the_cells() -> None:
    said = cells_named(modules())
    assert {path: lines for path, lines in said.items() if not permitted(path)} == {}


def permitted(path: str) -> list[str]:
    """The patterns of MAY_NAME that let the file `path` name a cell."""
    return [pattern for pattern in MAY_NAME if fnmatch(path, pattern)]


def test_no_permission_outlives_its_need() -> None:
    used = {pattern for path in cells_named(modules()) for pattern in permitted(path)}
    assert set(MAY_NAME) - used == set()


@pytest.mark.parametrize(
    "text",
    [
        "cells.LSTM()",
        "from x import GRU as other",
        "import x as GRU",
        "class Elman: pass",
        "kind == 'lstm'",
    ],
)
def test_a_named_cell_is_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "scan.py").write_text(text)
    assert list(cells_named(modules(tmp_path))) == ["scan.py"]


def test_prose_may_name_a_cell(tmp_path: Path) -> None:
    (tmp_path / "scan.py").write_text('"""An LSTM, say."""\n# or a GRU')
    assert cells_named(modules(tmp_path)) == {}
