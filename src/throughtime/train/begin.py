"""How a run begins, and how one that was stopped is found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import OptionError, RunError
from throughtime.tasks import Task
from throughtime.tasks.choices import one_of
from throughtime.tasks.recipe import Recipe, recipe_from
from throughtime.train.run import Run, create, read

RUNS = Path("runs")


def resolve(kind: type[Task], given: Mapping[str, Any]) -> Recipe:
    """The recipe of what was given, then of the preset, then of the defaults.

    Raises:
        OptionError: a value is outside its rule.
    """
    preset = one_of("preset", str(given.get("preset", "quick")), tuple(kind.presets))
    recipe = recipe_from({"task": kind.name, **kind.presets[preset], **given})
    return replace(recipe, threads=recipe.threads or torch.get_num_threads())


def begin(kind: type[Task], folder: Path | None, given: Mapping[str, Any]) -> Run:
    """A new run in `folder`, or in the next free one under runs/; none of what the task refuses."""
    recipe = resolve(kind, given)
    kind(recipe)
    return create(folder or _next_free(kind.name), recipe)


def go_on(kind: type[Task], folder: Path | None, given: Mapping[str, Any]) -> Run:
    """The run in `folder`, or the newest of the task, with the recipe it began with.

    Raises:
        RunError: there is none.
        OptionError: an option was given that differs from the run's.
    """
    run = read(folder or _newest(kind.name))
    if run.recipe.task != kind.name:
        raise RunError(
            f"{run.folder} must be a run of {kind.name}, and it is one of {run.recipe.task}; "
            f"resume it with: throughtime train {run.recipe.task} --resume --out {run.folder}"
        )
    for name, value in given.items():
        if getattr(run.recipe, name) != value:
            raise OptionError(
                f"a resumed run keeps its options, and --{name.replace('_', '-')} is "
                f"{getattr(run.recipe, name)!r} in {run.folder}, got {value!r}; leave it out, "
                "or begin a new run without --resume"
            )
    return run


def _numbered(task: str) -> dict[int, Path]:
    found = {path.name.removeprefix(f"{task}-"): path for path in RUNS.glob(f"{task}-*")}
    return {int(number): path for number, path in found.items() if number.isdecimal()}


def _next_free(task: str) -> Path:
    return RUNS / f"{task}-{max(_numbered(task), default=0) + 1}"


def _newest(task: str) -> Path:
    runs = _numbered(task)
    if not runs:
        raise RunError(
            f"--resume goes on with a run, and {RUNS}/ has none of {task}; "
            "name its folder with --out, or begin one without --resume"
        )
    return runs[max(runs)]
