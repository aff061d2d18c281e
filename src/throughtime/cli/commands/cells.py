"""`throughtime cells`: the cells there are."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.cli import Commands


def register(commands: Commands) -> None:
    """Adds the command."""
    commands.add("cells", list_cells)


def list_cells() -> None:
    """List the cells, each with the first line of its description."""
    from throughtime.cells import available

    for name, kind in available().items():
        print(f"{name:<20} {(inspect.getdoc(kind) or '').partition(chr(10))[0]}")
