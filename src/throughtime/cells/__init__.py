"""The cells: one a file, each its textbook equations. A new file is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from throughtime.cells.cell import Cell as Cell


@cache
def available() -> dict[str, type[Cell]]:
    """Every cell of this package by its class name, in alphabetical order."""
    found: dict[str, type[Cell]] = {}
    for module in pkgutil.iter_modules(__path__):
        content = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for name, value in content.items():
            if isinstance(value, type) and issubclass(value, Cell) and value is not Cell:
                found[name] = value
    return dict(sorted(found.items()))


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in available():
        raise AttributeError(f"throughtime.cells has no cell {name!r}: {', '.join(available())}")
    return available()[name]


def __dir__() -> list[str]:
    return [*available(), "Cell", "available"]
