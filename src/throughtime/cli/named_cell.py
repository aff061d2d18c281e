"""A cell as it is named on the command line: NAME, NAME(2) or FILE.py:NAME."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from throughtime.cells import Cell, available
from throughtime.cli.user_file import executed, told_by_line
from throughtime.errors import CellError, OptionError
from throughtime.tasks.cell import KINDS
from throughtime.tasks.choices import one_of

_FORM = re.compile(
    r"(?:(?P<file>.+\.py)(?::|$))?(?P<name>[^(:]*)(?:\((?P<arguments>.*)\))?", re.DOTALL
)


def user_file(text: str) -> Path | None:
    """The Python file in a user's name of a cell, or None."""
    form = _FORM.fullmatch(text)
    return Path(form["file"]) if form and form["file"] else None


def named_cell(text: str) -> Cell:
    """The cell a user names, built.

    Raises:
        OptionError: there is no such cell, or its arguments are missing or wrong.
        OSError: the file cannot be read.
    """
    form, file = _FORM.fullmatch(text), user_file(text)
    if form is None or not (form["name"] or (file and form["arguments"] is None)):
        raise OptionError(f"cell must be a name or FILE.py:NAME, got {text!r}")
    kind = _builtin(form["name"]) if file is None else _defined(file, form["name"])
    values = _values(form["arguments"], text)
    try:
        with told_by_line(file):
            return kind(*values)
    except CellError:
        raise
    except (ValueError, TypeError) as error:
        if isinstance(error, OptionError):
            raise
        raise _misbuilt(text, str(error)) from error


def _values(arguments: str | None, text: str) -> tuple[Any, ...]:
    """The values in the brackets behind a name."""
    try:
        values: tuple[Any, ...] = ast.literal_eval(f"({arguments},)" if arguments else "()")
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise _misbuilt(text, "they must be written out") from error
    return values


def _misbuilt(text: str, reason: str) -> OptionError:
    return OptionError(
        "cell must be a name with the values it is built of, as in 'Skip(2)' or "
        f"\"Elman('relu')\", got {text!r} ({reason})"
    )


def _builtin(name: str) -> type[Cell]:
    """A cell of this package, by its own name or by its short one in a recipe."""
    kinds = available()
    return KINDS.get(name.casefold()) or kinds[_spelled(name, kinds)]


def _defined(file: Path, name: str) -> type[Cell]:
    """A cell that a Python file of the user's defines; the only one where none is named."""
    module = executed(file)
    own = {
        n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__
    }
    kinds = {n: v for n, v in own.items() if isinstance(v, type) and issubclass(v, Cell)}
    if not kinds:
        raise OptionError(f"{file} must define a cell, a class below throughtime.Cell")
    if not name and len(kinds) > 1:
        raise OptionError(
            f"{file} defines several cells, {', '.join(kinds)}; name one: {file}:{[*kinds][0]}"
        )
    return kinds[_spelled(name, kinds) if name else [*kinds][0]]


def _spelled(name: str, kinds: Mapping[str, type[Cell]]) -> str:
    """The name as it is spelled, whatever its case and underscores."""
    alike = [kind for kind in kinds if _plain(kind) == _plain(name)]
    return alike[0] if len(alike) == 1 else one_of("cell", name, tuple(kinds))


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")
