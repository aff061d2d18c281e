"""A run's options as command-line flags: names, help and rules from the recipe's own fields."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from typing import TYPE_CHECKING, Any

from throughtime.tasks.recipe import NO_COUNT, Recipe, describe_rule, list_options, parse_option

if TYPE_CHECKING:
    from throughtime.cli import Commands, Parser
    from throughtime.tasks import Task


def add_recipe_flags(
    parser: Parser, commands: Commands, kinds: Mapping[str, type[Task]], without: Sequence[str] = ()
) -> None:
    """One flag for each field that a task's recipe has, but `task` and those of `without`.

    The help has the defaults of the task that the command line names, and leaves out what that
    task does not read; without one it has what all tasks share, and lists them. All are read as
    text, so that one place, the recipe, tells what is wrong with a value.
    """
    values = [word.rpartition("=")[2] for word in commands.words]
    named = [kinds[value] for value in values if value in kinds][:1]
    for field in _list_fields([*named, *kinds.values()], bool(named)).values():
        if field.name not in ("task", *without):
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                metavar="|".join(field.metadata["choices"]) or str(field.type).upper(),
                help=_write_help(field.name, named or [*kinds.values()]),
            )
    lines = [f"  {name:<10} {_first_line(kind)}" for name, kind in kinds.items()]
    if not named:
        lines.append(f"\nDefaults of one of them: {parser.prog} {_show_example(parser)} --help")
    parser.epilog = "\n".join(["tasks:", *lines])


def parse_flags(flags: Mapping[str, str | None]) -> dict[str, Any]:
    """What was given of the flags, as the recipe takes it; what was not is the preset's."""
    from throughtime.tasks import available

    known = _list_fields(available().values())
    return {n: parse_option(known[n], text) for n, text in flags.items() if text is not None}


def _list_fields(kinds: Iterable[type[Task]], first: bool = False) -> dict[str, Field[Any]]:
    """The options of some tasks by name: those that all share first.

    Args:
        kinds: the tasks.
        first: whether an option is as the first of them has it.
    """
    every, kinds = list_options(Recipe), list(kinds)
    for kind in kinds:
        every |= {n: f for n, f in list_options(kind.options).items() if n not in every}
    return every | (list_options(kinds[0].options) if first else {})


def whole_number(text: str) -> int:
    """The number that somebody typed; argparse says what is wrong with another text."""
    try:
        value = int(text)
    except ValueError:
        value = NO_COUNT
    if abs(value) >= NO_COUNT:
        raise argparse.ArgumentTypeError(f"must be a whole number below {NO_COUNT}, got {text!r}")
    return value


def number(text: str) -> float:
    """The number that somebody typed; argparse says what is wrong with another text."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def _write_help(name: str, kinds: Sequence[type[Task]]) -> str:
    """The help line of a field with its default in some tasks, all of them or the one asked for."""
    field = list_options(kinds[0].options if len(kinds) == 1 else Recipe).get(name)
    if field is None or all(name in kind.ignores for kind in kinds):
        return argparse.SUPPRESS
    rule = "" if field.metadata["choices"] else f" ({describe_rule(field.metadata, field.type)})"
    quick, full = ({k.presets[p].get(name, list_options(k.options)[name].default) for k in kinds
                    if p in k.presets} for p in ("quick", "full"))  # fmt: skip
    if len(quick) > 1 or len(full) > 1:
        default = "the task's"
    else:
        default = str(*quick) or "none"
        default += f", with --preset full {full.pop()}" if full and full != quick else ""
    return f"{field.metadata['help']}{rule}. Default: {default}.".replace("%", "%%")


def _first_line(kind: type[Task]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _show_example(parser: Parser) -> str:
    return "--task latch" if "--task" in parser.options else "latch"
