"""The runs of a study: every cell from every start over every length, once a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from throughtime.errors import OptionError
from throughtime.tasks import available, find
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe, short
from throughtime.train.begin import check_memory

_MOST_SEEDS = 1000

AXES = ("cell", "start", "length", "seed")
"""Fields of the recipe that differ within a study."""


@dataclass(frozen=True)
class Grid:
    """The values of each axis; a value that stands twice counts once."""

    cells: Sequence[str]
    starts: Sequence[str]
    lengths: Sequence[int]
    seeds: int

    def recipes(self, shared: Recipe) -> list[Recipe]:
        """All of them, seed by seed, so that what is done first covers the whole grid."""
        seeds = range(self.seeds)
        sides: list[Sequence[Any]] = [seeds, *map(_once, (self.lengths, self.cells, self.starts))]
        return [
            replace(shared, seed=seed, length=length, cell=cell, start=start)
            for seed, length, cell, start in product(*sides)
        ]


def _once(values: Sequence[Any]) -> Sequence[Any]:
    return list(dict.fromkeys(values))


def plan(shared: Recipe, grid: Grid) -> tuple[list[Recipe], list[str]]:
    """The runs that make sense, and a sentence for each cell and start that do not go together.

    Raises:
        OptionError: a value is outside its rule, or nothing is left to run.
    """
    if not 1 <= grid.seeds <= _MOST_SEEDS:
        raise OptionError(
            f"seeds must be a whole number of at least 1 and at most {_MOST_SEEDS}, got "
            f"{short(grid.seeds)}"
        )
    wanted = grid.recipes(shared)
    reasons = {key(one)[:3]: _reason(one) for one in wanted if one.seed == 0}
    skipped = {f"{cell} from {start}: {why}" for (cell, start, _), why in reasons.items() if why}
    runs = [one for one in wanted if not reasons[key(one)[:3]]]
    if not runs:
        raise OptionError(f"a study needs a cell and a start that go together; {min(skipped)}")
    return runs, sorted(skipped)


def key(recipe: Recipe) -> tuple[str, str, int, int]:
    """Cell, start, length and seed: what tells a run from the others of its study.

    The length is the task's own where the recipe's means nothing to it.
    """
    return recipe.cell, recipe.start, memory_task(recipe).steps, recipe.seed


def _reason(recipe: Recipe) -> str:
    """Why a cell has no such start, or nothing.

    Raises:
        OptionError: the model is too large for this machine.
    """
    small = memory_task(replace(recipe, hidden=2))
    try:
        small.model()
    except OptionError as error:
        return str(error)
    check_memory(memory_task(recipe))
    return ""


def memory_task(recipe: Recipe) -> MemoryTask:
    """The task of a recipe.

    Raises:
        OptionError: it is no memory task.
    """
    kind = find(recipe.task)
    if not issubclass(kind, MemoryTask):
        fit = [name for name, one in available().items() if issubclass(one, MemoryTask)]
        raise OptionError(
            f"a study is of a memory task, {', '.join(fit)}, and {recipe.task} is none"
        )
    return kind(recipe)
