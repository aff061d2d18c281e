"""The recipe: everything a run of any task is made from, in one frozen dataclass; and its cell.

The cell is one of the package, or one that a Python file of the user's defines.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal, TypeVar, cast, get_args

from throughtime import cells
from throughtime.cells import Cell
from throughtime.errors import CellError, DataError, OptionError, ThroughtimeError

_LONG = 60

SomeFacts = TypeVar("SomeFacts")


def one_of(what: str, value: str, allowed: Sequence[str]) -> str:
    """`value`; raises OptionError where it is none of `allowed`, with the closest of them."""
    if value in allowed:
        return value
    hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
    raise OptionError(f"{what} must be one of {', '.join(allowed)}, got {short(value)}{hint}")


def short(value: object) -> str:
    """A value as an error shows it: whole, or its beginning where it is long."""
    if isinstance(value, int) and abs(value) >= 10**_LONG:
        return f"a number of some {value.bit_length() * 30103 // 100000} digits"
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def did_you_mean(value: str, allowed: Sequence[str]) -> str:
    """`; did you mean X?` for the allowed name closest to `value`, or nothing when none is."""
    names = {name.casefold(): name for name in allowed}
    close = get_close_matches(value.casefold(), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


SHORT_NAMES: dict[str, type[Cell]] = {"rnn": cells.Elman, "gru": cells.GRU, "lstm": cells.LSTM}
"""Cells by the names that recipes have for them."""

NO_COUNT = 2**31  # no option that counts something gets here


def option(
    default: Any, help: str, *, choices: tuple[str, ...] = (), at_least: float = -math.inf,
    below: float = math.inf, above: float = -math.inf,
) -> Any:  # fmt: skip
    """A field with its help line and its rule: the command line and the checks read both here."""
    rule = {"choices": choices, "at_least": at_least, "below": below, "above": above}
    return field(default=default, metadata={"help": help, **rule})


def found_by_task() -> Any:
    """A field of plain values by name that no one gives: a task finds them when a run begins."""
    return field(default_factory=dict, metadata={"help": "Found by the task", "choices": ()})


Merge = Literal["concat", "sum"]
Start = Literal["torch", "orthogonal", "identity", "forget", "chrono", "timescales"]
Schedule = Literal["cosine", "linear", "constant"]
Clip = Literal["none", "norm", "value"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is made from; saved as `config.json`. Same recipe, same machine: same bits.

    A task with options of its own has a dataclass with these fields and its own.
    """

    task: str = option("pronounce", "What is learned")
    preset: str = option("quick", "Where the other values come from", choices=("quick", "full"))
    cell: str = option("lstm", "Recurrent cell", choices=("rnn", "gru", "lstm"))
    directions: int = option(2, "1: read forward; 2: both ways", at_least=1, below=3)
    merge: Merge = option("concat", "How two directions become one output", choices=get_args(Merge))
    layers: int = option(1, "Recurrent layers on top of each other", at_least=1, below=3)
    hidden: int = option(128, "Hidden units a direction", at_least=1)
    dropout: float = option(0.1, "Share of activations dropped", at_least=0, below=1)
    length: int = option(100, "Steps of a sequence, in the memory tasks", at_least=4)
    start: Start = option(
        "torch", "Initial values of the recurrent layers", choices=get_args(Start)
    )
    horizon: int = option(
        0, "Longest time scale of a start, in steps; 0: the length, or 100, for chrono, three "
        "times it for timescales", at_least=0,
    )  # fmt: skip
    seed: int = option(0, "Fixes initial weights, batch order, dropout", at_least=0, below=2**31)
    steps: int = option(2500, "Training steps", at_least=1)
    batch_size: int = option(256, "Examples a step", at_least=1)
    lr: float = option(4e-3, "Peak learning rate (Adam)", above=0)
    schedule: Schedule = option("cosine", "Decay after the warm-up", choices=get_args(Schedule))
    warmup: int = option(100, "Steps of linear warm-up", at_least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", at_least=0)
    smoothing: float = option(0.0, "Label smoothing", at_least=0, below=1)
    clip: Clip = option("norm", "Gradient clipping", choices=get_args(Clip))
    clip_threshold: float = option(1.0, "Largest gradient norm or value", above=0)
    validate_every: int = option(500, "Steps between validations", at_least=1)
    patience: int = option(10, "Validations without progress before stopping", at_least=1)
    checkpoint_every: int = option(100, "Steps between checkpoints", at_least=1)
    log_every: int = option(50, "Steps between rows of metrics.jsonl", at_least=1)
    threads: int = option(
        0, "Threads torch computes with; 0: as many as it finds", at_least=0, below=1025
    )
    parts: int = option(
        0, "Parts that each batch is computed in, whoever computes which: they decide the bits, "
        "not the number of processes; 0: one for each process that begins the run", at_least=0,
        below=1025,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_field(f.name, getattr(self, f.name), f.type, f.metadata)


@dataclass(frozen=True, kw_only=True)
class CellRecipe(Recipe):
    """A recipe of a task that takes any cell."""

    cell: str = option("lstm", "Recurrent cell: one of `throughtime cells`, or FILE.py:NAME")


@dataclass(frozen=True, kw_only=True)
class FileRecipe(CellRecipe):
    """A recipe of a task on a file of the user's, with the facts that the task found in it."""

    facts: dict[str, Any] = found_by_task()


def _check_field(name: str, value: Any, kind: Any, rule: Mapping[str, Any]) -> None:
    """One field against its kind and its rule; raises OptionError."""
    if rule["choices"]:
        one_of(name, value, rule["choices"])
        return
    if "at_least" not in rule:
        if not isinstance(value, dict):
            raise OptionError(f"{name} must be an object, got {short(value)}")
        return
    wanted: dict[str, Any] = {"int": int, "float": int | float, "str": str}
    right = isinstance(value, wanted[str(kind)]) and not isinstance(value, bool)
    if right and isinstance(value, int) and value >= NO_COUNT:
        rule = {**rule, "below": min(rule["below"], NO_COUNT)}
    if right and kind != "str":
        inside = rule["at_least"] <= value < rule["below"] and rule["above"] < value
        right = inside and math.isfinite(value)
    if not right:
        raise OptionError(f"{name} must be {describe_rule(rule, kind)}, got {short(value)}")


def describe_rule(rule: Mapping[str, Any], kind: Any) -> str:
    """A rule in words: `a whole number of at least 1 and below 3`."""
    number = {"int": "a whole number", "float": "a finite number"}.get(str(kind), "a text")
    bounds = [
        f"{word} {rule[key]}"
        for key, word in (("at_least", "of at least"), ("above", "above"), ("below", "below"))
        if math.isfinite(rule[key])
    ]
    return " ".join([number, " and ".join(bounds)]).strip()


def parse_option(option: Field[Any], text: str) -> Any:
    """A field's value as somebody typed it; text that is no number stays text, for the checks."""
    kind = {"int": int, "float": float}.get(str(option.type), str)
    if text.casefold() in option.metadata["choices"]:
        return text.casefold()
    try:
        return kind(text)
    except ValueError:
        return text


def list_options(kind: type[Recipe]) -> dict[str, Field[Any]]:
    """The fields of a kind of recipe that people give, by name."""
    return {f.name: f for f in fields(kind) if "at_least" in f.metadata}


def recipe_from(values: Mapping[str, Any], kind: type[Recipe] = Recipe) -> Recipe:
    """The recipe with these values; fields that are not named keep their defaults.

    Raises:
        OptionError: a name is no field, or a value is outside its rule.
    """
    names = [f.name for f in fields(kind)]
    for name in values:
        if name not in names:
            raise OptionError(f"{short(name)} is no option of a recipe{did_you_mean(name, names)}")
    return kind(**values)


def parse_facts(kind: type[SomeFacts], values: Mapping[str, Any]) -> SomeFacts:
    """What a run's file said, a dataclass, from the recipe of the run.

    Raises:
        OptionError: something is missing or of another kind.
    """
    forms = {f.name: str(f.type).partition("[")[0] for f in fields(cast(Any, kind))}
    odd = set(forms) ^ set(values)
    odd |= {n for n, form in forms.items() if n in values and not _fits(values[n], form)}
    if odd:
        raise OptionError(
            f"facts must hold what this version finds in a file, and {min(odd)} is not as it "
            "writes it; begin the run again"
        )
    return kind(**values)


def _fits(value: Any, form: str) -> bool:
    kinds: dict[str, Any] = {"float": int | float, "str": str, "int": int, "bool": bool}
    return isinstance(value, kinds.get(form) or {"list": list, "dict": dict}[form])


def check_unchanged(file: str, digest: str, wanted: str) -> None:
    """Raises DataError where a file is another one than when the run began; by its digests."""
    if digest != wanted:
        raise DataError(
            f"{file} must be as it was when the run began, and it was changed; restore it, or "
            "begin a new run"
        )


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def resolve_cell(recipe: AnyRecipe) -> AnyRecipe:
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
