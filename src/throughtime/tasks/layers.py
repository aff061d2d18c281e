"""The layers of a task: any cell, from any start, with gaps of time where it reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from throughtime import Recurrent, initialise
from throughtime.errors import OptionError
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.user_file import named_cell, told_by_line, user_file

_READ = {"gap": 1, "mask": 1}  # direct inputs that a task has, and their width
_SHORTEST = 3  # steps of a time scale that a start can be given


Given = TypeVar("Given", bound=Recipe)


def with_cell_found(recipe: Given) -> Given:
    """The recipe, its cell looked at; a file of the user's by its whole path.

    Raises:
        OptionError: there is no such cell, or it cannot be built.
        OSError: its file cannot be read.
    """
    named_cell(recipe.cell)
    file = user_file(recipe.cell)
    if file is None:
        return recipe
    return replace(recipe, cell=f"{file.resolve()}{recipe.cell.removeprefix(str(file))}")


def start_of(recipe: Recipe) -> dict[str, Any]:
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
    with told_by_line(user_file(recipe.cell)):
        cell = named_cell(recipe.cell)
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
            initialise(layers, **start_of(recipe))
        return layers


def run_layers(layers: Recurrent, x: Tensor, gap: Tensor, mask: Tensor, **given: Any) -> Any:
    """Outputs and states.

    Args:
        layers: of `make_layers`.
        x: (T, B, width).
        gap: (T, B, 1) steps since something was seen before; mask: (T, B, 1), 1 where it is seen.
        given: as the layers take it.
    """
    there = {"gap": gap, "mask": mask}
    read = {name: there[name] for name in layers.cell.inputs}
    return layers(x, inputs=read, **given) if read else layers(x, **given)
