"""Every living cell by its key, so that an operator of torch, which takes no objects, finds it."""

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
_MEANT: dict[str, tuple[Any, ...]] = {}  # a key never comes to mean another cell
_LOCK = Lock()
_TOKEN = secrets.token_hex(8)  # no other process has it


def interned(cell: Cell) -> Cell:
    """The living cell that equals this one, or this one with a key of its own.

    Equal cells are one object, so a key stays good as long as any layer holds the cell. A key that
    another process could use for another cell, since a closure's name does not say what it does,
    holds the token of this process.
    """
    meant = (type(cell), cell.arguments, cell.outside)
    words = _in_words(cell)
    with _LOCK:
        key = words if _is_importable(meant[:2]) else f"{words}#{_TOKEN}"
        count = 1
        while _MEANT.setdefault(key, meant) != meant:
            count += 1
            key = f"{words}#{_TOKEN}.{count}"
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
            f"the cell {key} is not known in this process; build a layer of it first (an exported "
            f"program holds only the cell's name, and a cell made of a lambda, a local function or "
            f"a local class has a name in its own process only)"
        )
    return cell


def _in_words(cell: Cell) -> str:
    """The class and its arguments, each function with its module."""
    kind, words = type(cell), []
    for name, v in cell.arguments.items():
        called = getattr(v, "__qualname__", None)
        words.append(
            f"{name}={getattr(v, '__module__', None)}.{called}" if called else f"{name}={v!r}"
        )
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(words)})"


def _is_importable(meant: tuple[Any, ...]) -> bool:
    """Whether another process that has the same modules would mean the same by the same words."""
    try:
        pickle.dumps(meant)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
