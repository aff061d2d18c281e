"""What a cell is: its contract, its layout, and here the registry of living cells.

Every living cell has a key: an operator of torch takes the key, since it takes no objects. What
makes two cells one is here too: what a step reads besides its arguments, attributes of its cell,
globals, closures. A graph holds the values these had when it was traced, so they are part of a
cell's identity.
"""

from __future__ import annotations

import dis
import inspect
import pickle
import secrets
import types
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from torch import nn

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


_PLAIN: Final = (int, float, complex, str, bytes, bool, type(None))
_OURS: Final = "throughtime."
_LIBRARIES: Final = ("torch", "numpy", "throughtime", "math")
_DEEP: Final = 4
"""How many levels deep nested calls and objects are searched."""


def read_outside(cell: Cell) -> tuple[tuple[str, Any], ...]:
    """Names that the step of a user's cell reads, each with its present value."""
    if type(cell).__module__.startswith(_OURS):
        return ()
    step = inspect.unwrap(type(cell).step)
    values = dict(_of_function(step, cell, _DEEP))
    attributes = _names(step.__code__) if isinstance(step, types.FunctionType) else ()
    for name, value in vars(cell).items():
        if not isinstance(value, _PLAIN):  # plain ones are among the arguments
            values |= dict(_of_value(f"self.{name}", value, cell, attributes, _DEEP))
    return tuple(values.items())


def _of_function(function: Any, cell: Cell, deep: int) -> Iterator[tuple[str, Any]]:
    function = inspect.unwrap(function)
    if not isinstance(function, types.FunctionType):
        return
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return
    code = function.__code__
    yield f"{function.__qualname__}", code
    names, globals_read = _names(code), _globals(code)
    for name in dict.fromkeys((*globals_read, *names)):
        if name in globals_read and name in function.__globals__:
            yield from _of_value(name, function.__globals__[name], cell, names, deep)
        elif not name.startswith("__") and hasattr(type(cell), name):
            value = inspect.getattr_static(type(cell), name)
            yield from _of_value(f"{type(cell).__name__}.{name}", value, cell, names, deep)
    closure = zip(code.co_freevars, function.__closure__ or (), strict=False)
    for name, content in closure:
        try:
            yield from _of_value(name, content.cell_contents, cell, names, deep)
        except ValueError:  # not assigned yet
            continue


def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function and its nested functions use."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return (*code.co_names, *(name for c in inner for name in _names(c)))


def _globals(code: types.CodeType) -> frozenset[str]:
    """The globals that a function and its nested functions read."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return frozenset(names).union(*(_globals(c) for c in inner))


def _check_no_weights(name: str, value: Any, cell: Cell) -> None:
    """A weight that a step reads from outside would be no parameter of any layer."""
    module_with_weights = isinstance(value, nn.Module) and any(True for _ in value.parameters())
    if module_with_weights or isinstance(value, nn.Parameter):
        code = inspect.unwrap(type(cell).step).__code__
        raise CellError(
            f"{type(cell).__name__}.step must read no weights from outside, which no layer would "
            f"train, move or save, got {name}, a {type(value).__qualname__}; declare them instead: "
            f"gates (W and U), products (matrices) and vectors\n"
            f"  at {code.co_filename}:{code.co_firstlineno}, the step"
        )


def _of_value(
    name: str, value: Any, cell: Cell, names: tuple[str, ...], deep: int
) -> Iterator[tuple[str, Any]]:
    """Numbers and texts as they are, functions by what they read, objects by attributes read."""
    _check_no_weights(name, value, cell)
    if isinstance(value, _PLAIN):
        yield name, value
    elif isinstance(value, tuple | list):
        for i, v in enumerate(value):
            yield from _of_value(f"{name}[{i}]", v, cell, names, deep)
    elif isinstance(value, types.FunctionType) and deep:
        yield from _of_function(value, cell, deep - 1)
    elif deep and not isinstance(value, type | types.ModuleType) and hasattr(value, "__dict__"):
        for word in names:
            if word in vars(value):
                yield from _of_value(f"{name}.{word}", vars(value)[word], cell, names, deep - 1)
