"""The package's source as the house's tests read it: parsed, never imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "throughtime"


@dataclass(frozen=True)
class Module:
    """One file of a package: its path below the package, its dotted name and its parsed text."""

    path: str
    name: str
    text: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        """The top folder or file it belongs to; the package's own file is `throughtime`."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else parts[0]


def modules(package: Path = PACKAGE) -> list[Module]:
    """Every module under the folder `package`, which stands for `throughtime`."""
    return [_read(package, file) for file in sorted(package.rglob("*.py"))]


def _read(package: Path, file: Path) -> Module:
    relative = file.relative_to(package)
    parts = ["throughtime", *relative.with_suffix("").parts]
    if parts[-1] == "__init__":
        parts.pop()
    text = file.read_text(encoding="utf-8")
    return Module(relative.as_posix(), ".".join(parts), text, ast.parse(text, str(file)))


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, at its top or inside a function.

    `from a import b` is `a.b`: whether b is a module or a name in one does not matter here.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _calls_import(node):
            yield node.lineno, node.args[0].value


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    if not module.path.endswith("__init__.py"):
        package.pop()
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module] if node.module else package)


def _calls_import(node: ast.Call) -> bool:
    """True for `import_module("throughtime.x")`: a name that stands in the source."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
    return name in {"import_module", "import_extra", "import_package", "__import__"} and literal


def tracked() -> list[Path]:
    """Every file of the repository that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout knows which files are the repository's")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = (ROOT / name for name in listing.split("\0") if name)
    return [file for file in files if file.is_file()]


def fresh(code: str) -> str:
    """What a new Python process prints for `code`; its errors and warnings fail the test."""
    command = [sys.executable, "-W", "error", "-c", code]
    keeps = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # as on users' machines
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=keeps)
    assert done.returncode == 0, done.stderr
    return done.stdout
