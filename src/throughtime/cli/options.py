"""A run's options as command-line flags: names, help and rules from the recipe's own fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

from throughtime.tasks.recipe import Recipe, from_text, said

# The task is the command's argument.
_NOT_A_FLAG = ("task",)


def with_recipe_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command(..., **flags)` as typer reads it: `**flags` spelled out, one for each field.

    A flag that was not given is None, so that the preset decides. All are read as text, so that
    one place, the recipe, tells what is wrong with a value.
    """
    given = inspect.signature(command, eval_str=True)
    own = [p for p in given.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [_flag(f) for f in fields(Recipe) if f.name not in _NOT_A_FLAG]

    def spelled_out(**values: Any) -> None:
        for field in fields(Recipe):
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
