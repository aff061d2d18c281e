"""Every living cell by its key: an operator of torch takes the key, since it takes no objects."""

from __future__ import annotations

import pickle
import secrets
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from throughtime.errors import CellError

if TYPE_CHECKING:
    from throughtime.cell.contract import Cell


_LIVING: WeakValueDictionary[str, Cell] = WeakValueDictionary()
_DEFINITIONS: dict[str, tuple[Any, ...]] = {}  # key -> the only cell that it ever names
_LOCK = Lock()
_TOKEN = secrets.token_hex(8)  # no other process has it


def intern_cell(cell: Cell) -> Cell:
    """The living cell that equals this one, or this one under a new key.

    Equal cells are one object, so a key is valid as long as any layer holds the cell. The key of a
    cell that no other process can build (a closure's name does not say what it computes) contains
    the token of this process.
    """
    definition = (type(cell), cell.arguments, cell.outside)
    words = _in_words(cell)
    with _LOCK:
        key = words if _is_importable(definition[:2]) else f"{words}#{_TOKEN}"
        count = 1
        while _DEFINITIONS.setdefault(key, definition) != definition:
            count += 1
            key = f"{words}#{_TOKEN}.{count}"
        living = _LIVING.get(key)
        if living is not None:
            return living
        object.__setattr__(cell, "key", key)
        _LIVING[key] = cell
    return cell


def find_cell(key: str) -> Cell:
    """The living cell of a key."""
    cell = _LIVING.get(key)
    if cell is None:
        raise CellError(
            f"the cell {key} is not known in this process; build a layer of it first (an exported "
            f"program holds only the cell's name, and a cell made of a lambda, a local function or "
            f"a local class has a name in its own process only)"
        )
    return cell


def _in_words(cell: Cell) -> str:
    """The class and its arguments, each function with its module."""
    kind, words = type(cell), []
    for name, v in cell.arguments.items():
        qualname = getattr(v, "__qualname__", None)
        words.append(
            f"{name}={getattr(v, '__module__', None)}.{qualname}" if qualname else f"{name}={v!r}"
        )
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(words)})"


def _is_importable(definition: tuple[Any, ...]) -> bool:
    """Whether another process with the same modules builds the same cell from the same words."""
    try:
        pickle.dumps(definition)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
