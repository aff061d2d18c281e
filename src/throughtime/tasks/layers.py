"""The recurrent layers of a task, of a cell that the user names or defines in a Python file."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from torch import Tensor

from throughtime import Recurrent, cells, initialise
from throughtime.cells import Cell
from throughtime.errors import CellError, OptionError, ThroughtimeError
from throughtime.tasks.recipe import SHORT_NAMES, Recipe, one_of


def execute(file: Path) -> ModuleType:
    """The module of a file; what it defines has this module's name as `__module__`.

    Raises:
        OSError: the file cannot be read.
        OptionError: it raises; names the line.
    """
    name, path = f"throughtime_user_{file.stem}", file.resolve()
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what the file defines may look itself up there
    if str(path.parent) not in sys.path:  # as for a program: it may import its neighbours
        sys.path.insert(0, str(path.parent))
    with report_line(file):
        exec(_compile(path, name), vars(module))
    return module


def _compile(file: Path, name: str) -> CodeType:
    try:
        code = SourceFileLoader(name, str(file)).get_code(name)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, SyntaxError) and error.lineno:
            raise
        raise OptionError(f"{file} must be Python, and it is not ({error})") from error
    assert code is not None
    return code


@contextmanager
def report_line(file: Path | None) -> Iterator[None]:
    """An error that arose in a file of the user's, or below it, ends as one sentence with the line.

    Without a file, an error stays as it is.

    Raises:
        OptionError: in place of the error.
    """
    path = file and file.resolve()  # before the user's code may go to another folder
    try:
        yield
    except ThroughtimeError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        line = path and _find_line(path, error)
        if line is None:
            raise
        words = " ".join(str(error).split())
        raise OptionError(
            f"{file}, line {line}, raises {type(error).__name__}{': ' * bool(words)}{words}"
        ) from error


def _find_line(path: Path, error: BaseException) -> int | None:
    """The last line of the file that an error passed through; None for one from elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(path)]
    return lines[-1] if lines else None


_FORM = re.compile(
    r"(?:(?P<file>.+\.py)(?::|$))?(?P<name>[^(:]*)(?:\((?P<arguments>.*)\))?", re.DOTALL
)


def find_python_file(text: str) -> Path | None:
    """The Python file in a user's name of a cell, or None."""
    form = _FORM.fullmatch(text)
    return Path(form["file"]) if form and form["file"] else None


def build_cell(text: str) -> Cell:
    """The cell a user names, built.

    Raises:
        OptionError: there is no such cell, or its arguments are missing or wrong.
        OSError: the file cannot be read.
    """
    form, file = _FORM.fullmatch(text), find_python_file(text)
    if form is None or not (form["name"] or (file and form["arguments"] is None)):
        raise OptionError(f"cell must be a name or FILE.py:NAME, got {text!r}")
    kind = _find_builtin(form["name"]) if file is None else _find_defined(file, form["name"])
    values = _parse_arguments(form["arguments"], text)
    try:
        with report_line(file):
            return kind(*values)
    except CellError:
        raise
    except (ValueError, TypeError) as error:
        if isinstance(error, OptionError):
            raise
        raise _wrong_arguments(text, str(error)) from error


def _parse_arguments(arguments: str | None, text: str) -> tuple[Any, ...]:
    """The values in the brackets after a name."""
    try:
        values: tuple[Any, ...] = ast.literal_eval(f"({arguments},)" if arguments else "()")
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise _wrong_arguments(text, "they must be written out") from error
    return values


def _wrong_arguments(text: str, reason: str) -> OptionError:
    return OptionError(
        "cell must be a name with the values it is built of, as in 'Skip(2)' or "
        f"\"Elman('relu')\", got {text!r} ({reason})"
    )


def _find_builtin(name: str) -> type[Cell]:
    """A cell of this package, by the name of its class or by its short one in a recipe."""
    kinds = cells.available()
    return SHORT_NAMES.get(name.casefold()) or kinds[_match_name(name, kinds)]


def _find_defined(file: Path, name: str) -> type[Cell]:
    """A cell that a Python file of the user's defines; the only one where none is named."""
    module = execute(file)
    members = {
        n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__
    }
    kinds = {n: v for n, v in members.items() if isinstance(v, type) and issubclass(v, Cell)}
    if not kinds:
        raise OptionError(f"{file} must define a cell, a class below throughtime.Cell")
    if not name and len(kinds) > 1:
        raise OptionError(
            f"{file} defines several cells, {', '.join(kinds)}; name one: {file}:{[*kinds][0]}"
        )
    return kinds[_match_name(name, kinds) if name else [*kinds][0]]


def _match_name(name: str, kinds: Mapping[str, type[Cell]]) -> str:
    """The name as it is spelled, whatever its case and underscores."""
    alike = [kind for kind in kinds if _fold_name(kind) == _fold_name(name)]
    return alike[0] if len(alike) == 1 else one_of("cell", name, tuple(kinds))


def _fold_name(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


_READ = {"gap": 1, "mask": 1}  # direct inputs that a task has, and their width
_SHORTEST = 3  # steps of a time scale that a start can be given


Given = TypeVar("Given", bound=Recipe)


def resolve_cell(recipe: Given) -> Given:
    """The recipe, its cell looked at; a file of the user's by its whole path.

    Raises:
        OptionError: there is no such cell, or it cannot be built.
        OSError: its file cannot be read.
    """
    build_cell(recipe.cell)
    file = find_python_file(recipe.cell)
    if file is None:
        return recipe
    return replace(recipe, cell=f"{file.resolve()}{recipe.cell.removeprefix(str(file))}")


def start_options(recipe: Recipe) -> dict[str, Any]:
    """The start a recipe names, as `throughtime.initialise` takes it.

    Raises:
        OptionError: its horizon is too short.
    """
    horizon, length = recipe.horizon, recipe.length
    if 0 < horizon < _SHORTEST:
        raise OptionError(
            f"horizon must be 0 or a whole number of at least {_SHORTEST}, got {horizon}"
        )
    starts: dict[str, dict[str, Any]] = {
        "torch": {"recurrence": "torch"},
        "orthogonal": {"recurrence": "orthogonal"},
        "identity": {"recurrence": "identity"},
        "forget": {"forget_bias": 1.0},
        "chrono": {"chrono": horizon or length},
        "timescales": {"recurrence": "orthogonal", "timescales": (2, horizon or 3 * length)},
    }
    return starts[recipe.start]


def make_layers(recipe: Recipe, width: int, reads: bool = False) -> Recurrent:
    """The recurrent layers of a recipe.

    Args:
        recipe: cell, layers, directions, merge, hidden, dropout and start.
        width: of the input.
        reads: whether each step has the time since something was seen, and whether it was.

    Raises:
        OptionError: the cell reads what the task has not, or reads it backward, or it has no such
            start.
    """
    with report_line(find_python_file(recipe.cell)):
        cell = build_cell(recipe.cell)
        for name, wide in cell.inputs.items():
            if not reads or _READ.get(name) != wide:
                has = "gap and mask, one number each" if reads else "no direct inputs"
                raise OptionError(
                    f"cell {recipe.cell} must read what {recipe.task} has, {has}, and it reads "
                    f"{name}; choose another cell"
                )
        if cell.inputs and recipe.directions == 2:
            raise OptionError(
                f"cell {recipe.cell} reads the time since something was seen, which has one "
                "direction, got directions 2; give --directions 1"
            )
        layers = Recurrent(
            cell, width, recipe.hidden, num_layers=recipe.layers,
            bidirectional=recipe.directions == 2, merge=recipe.merge,
            dropout=recipe.dropout if recipe.layers > 1 else 0.0,
        )  # fmt: skip
        if recipe.start != "torch":
            initialise(layers, **start_options(recipe))
        return layers


def run_layers(layers: Recurrent, x: Tensor, gap: Tensor, mask: Tensor, **options: Any) -> Any:
    """Outputs and states.

    Args:
        layers: of `make_layers`.
        x: (T, B, width).
        gap: (T, B, 1) steps since something was seen before; mask: (T, B, 1), 1 where it is seen.
        options: as the layers take them.
    """
    direct = {"gap": gap, "mask": mask}
    read = {name: direct[name] for name in layers.cell.inputs}
    return layers(x, inputs=read, **options) if read else layers(x, **options)
