"""The recipe: everything a run of any task is made from, in one frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, cast

from throughtime import cells
from throughtime.cells import Cell
from throughtime.errors import DataError, OptionError

_LONG = 60

Found = TypeVar("Found")


def one_of(what: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, when it is one of `allowed`.

    Raises:
        OptionError: it is not; names the rule, the value and the closest allowed name.
    """
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
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float = -math.inf,
    below: float = math.inf,
    above: float = -math.inf,
) -> Any:
    """A field with its help line and its rule: the command line and the checks read both here."""
    rule = {"choices": choices, "at_least": at_least, "below": below, "above": above}
    return field(default=default, metadata={"help": help, **rule})


def found_by_task() -> Any:
    """A field of plain values by name that no one gives: a task finds them when a run begins."""
    return field(default_factory=dict, metadata={"help": "Found by the task", "choices": ()})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is made from; saved as `config.json`. Same recipe, same machine: same bits.

    A task with options of its own has a dataclass with these fields and its own.
    """

    task: str = option("pronounce", "What is learned")
    preset: str = option("quick", "Where the other values come from", choices=("quick", "full"))
    cell: str = option("lstm", "Recurrent cell", choices=("rnn", "gru", "lstm"))
    directions: int = option(2, "1: read forward; 2: both ways", at_least=1, below=3)
    merge: Literal["concat", "sum"] = option(
        "concat", "How two directions become one output", choices=("concat", "sum")
    )
    layers: int = option(1, "Recurrent layers on top of each other", at_least=1, below=3)
    hidden: int = option(128, "Hidden units a direction", at_least=1)
    dropout: float = option(0.1, "Share of activations dropped", at_least=0, below=1)
    length: int = option(100, "Steps of a sequence, in the memory tasks", at_least=4)
    start: Literal["torch", "orthogonal", "identity", "forget", "chrono", "timescales"] = option(
        "torch",
        "Initial values of the recurrent layers",
        choices=("torch", "orthogonal", "identity", "forget", "chrono", "timescales"),
    )
    horizon: int = option(
        0,
        "Longest time scale of a start, in steps; 0: the length, or 100, for chrono, three times "
        "it for timescales",
        at_least=0,
    )
    seed: int = option(0, "Fixes initial weights, batch order, dropout", at_least=0, below=2**31)
    steps: int = option(2500, "Training steps", at_least=1)
    batch_size: int = option(256, "Examples a step", at_least=1)
    lr: float = option(4e-3, "Peak learning rate (Adam)", above=0)
    schedule: Literal["cosine", "linear", "constant"] = option(
        "cosine", "Decay after the warm-up", choices=("cosine", "linear", "constant")
    )
    warmup: int = option(100, "Steps of linear warm-up", at_least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", at_least=0)
    smoothing: float = option(0.0, "Label smoothing", at_least=0, below=1)
    clip: Literal["none", "norm", "value"] = option(
        "norm", "Gradient clipping", choices=("none", "norm", "value")
    )
    clip_threshold: float = option(1.0, "Largest gradient norm or value", above=0)
    validate_every: int = option(500, "Steps between validations", at_least=1)
    patience: int = option(10, "Validations without progress before stopping", at_least=1)
    checkpoint_every: int = option(100, "Steps between checkpoints", at_least=1)
    log_every: int = option(50, "Steps between rows of metrics.jsonl", at_least=1)
    threads: int = option(
        0, "Threads torch computes with; 0: as many as it finds", at_least=0, below=1025
    )
    parts: int = option(
        0,
        "Parts that each batch is computed in, whoever computes which: they decide the bits, not "
        "the number of processes; 0: one for each process that begins the run",
        at_least=0,
        below=1025,
    )

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


def parse_facts(kind: type[Found], values: Mapping[str, Any]) -> Found:
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
