"""A run's options as command-line flags: names, help and rules from the recipe's own fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from throughtime.tasks.recipe import Recipe, from_text, said


def with_recipe_flags(
    command: Callable[..., None], without: Sequence[str] = ("task",)
) -> Callable[..., None]:
    """`command(..., **flags)` as typer reads it: `**flags` spelled out, one for each field.

    `without` names the fields that have none here: `train` takes the task as its argument.

    A flag that was not given is None, so that the preset decides. All are read as text, so that
    one place, the recipe, tells what is wrong with a value.
    """
    given = inspect.signature(command, eval_str=True)
    own = [p for p in given.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flagged = [f for f in fields(Recipe) if f.name not in without]
    flags = [_flag(f) for f in flagged]

    def spelled_out(**values: Any) -> None:
        for field in flagged:
            if values.get(field.name) is not None:
                values[field.name] = from_text(field, values[field.name])
        command(**values)

    spelled_out.__doc__ = command.__doc__
    spelled_out.__signature__ = given.replace(parameters=own + flags)  # type: ignore[attr-defined]
    return spelled_out


def _flag(field: Field[Any]) -> inspect.Parameter:
    option = typer.Option(
        f"--{field.name.replace('_', '-')}",
        help=_help(field),
        show_default=False,
        metavar="|".join(field.metadata["choices"]) or str(field.type).upper(),
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _help(field: Field[Any]) -> str:
    rule = "" if field.metadata["choices"] else f" ({said(field.metadata, field.type)})"
    presets = "" if field.name == "preset" else ", or the preset's"
    return f"{field.metadata['help']}{rule}. Default: {field.default}{presets}."
