"""Every living cell by its key, so that an operator of torch, which takes no objects, finds it."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from throughtime.errors import CellError

if TYPE_CHECKING:
    from throughtime.cells.cell import Cell

_LIVING: WeakValueDictionary[str, Cell] = WeakValueDictionary()
_MEANT: dict[str, tuple[type, dict[str, Any]]] = {}  # a key never comes to mean another cell
_LOCK = Lock()


def interned(cell: Cell) -> Cell:
    """The living cell that equals this one, or this one with a key of its own.

    Equal cells are one object, so a key stays good as long as any layer holds the cell.
    """
    words = f"{type(cell).__module__}.{cell!r}"
    meant = (type(cell), cell.arguments)
    with _LOCK:
        key, count = words, 1
        while _MEANT.setdefault(key, meant) != meant:
            count += 1
            key = f"{words}#{count}"
        living = _LIVING.get(key)
        if living is not None:
            return living
        object.__setattr__(cell, "key", key)
        _LIVING[key] = cell
    return cell


def registered(key: str) -> Cell:
    """The living cell behind a key."""
    cell = _LIVING.get(key)
    if cell is None:
        raise CellError(
            f"the cell {key} is not known in this process; build a layer of it first "
            f"(an exported program holds only the cell's name)"
        )
    return cell
