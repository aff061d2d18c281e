"""A cell as it is named on the command line: NAME, NAME(2) or FILE.py:NAME."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from throughtime.cells import Cell, available
from throughtime.cli.user_file import executed
from throughtime.errors import CellError, OptionError
from throughtime.tasks.choices import one_of

_FORM = re.compile(r"(?:(?P<file>.+\.py):)?(?P<name>[^(:]+)(?:\((?P<arguments>.*)\))?")


def named_cell(text: str) -> Cell:
    """The cell a user names, built.

    Raises:
        OptionError: there is no such cell, or its arguments are missing or wrong.
        OSError: the file cannot be read.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise OptionError(f"cell must be a name or FILE.py:NAME, got {text!r}")
    kinds = available() if found["file"] is None else _cells_of(Path(found["file"]))
    kind = kinds[one_of("cell", found["name"], tuple(kinds))]
    try:
        return kind(*ast.literal_eval(f"({found['arguments']},)" if found["arguments"] else "()"))
    except CellError:
        raise
    except (ValueError, SyntaxError, TypeError) as error:
        raise OptionError(
            f"cell must be a name with the values it is built of, as in 'Name(2)', "
            f"got {text!r} ({error})"
        ) from error


def _cells_of(file: Path) -> dict[str, type[Cell]]:
    """The cells that a Python file of the user's defines, by name."""
    module = executed(file)
    own = {
        n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__
    }
    found = {n: v for n, v in own.items() if isinstance(v, type) and issubclass(v, Cell)}
    if not found:
        raise OptionError(f"{file} must define a cell, a class below throughtime.Cell")
    return found
