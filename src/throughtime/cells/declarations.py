"""What a cell declares must be readable: names are identifiers, widths are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSet
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from throughtime.errors import CellError

if TYPE_CHECKING:
    from throughtime.cells.cell import Cell, Width


_MAPPINGS: Final = {
    "vectors": {"rate": 0.0},
    "products": {"m": ("hidden_size", "hidden_size")},
    "blocks": {"m": 4},
    "inputs": {"gap": 1},
    "keeps": {"f": 1},
    "writes": {"i": 1},
}


def check_declarations(cell: Cell) -> None:
    """Names are identifiers and unique in their namespace, and widths can be read."""
    _check_held(cell)
    _check_arguments(cell)
    name = type(cell).__name__
    for attribute in ("gates", "state"):
        value = getattr(cell, attribute, None)
        if not isinstance(value, tuple | Mapping) or not value:
            cure = f"; write {tuple(value)!r}" if isinstance(value, list) and value else ""
            raise CellError(
                f"{name}.{attribute} must be a tuple of at least one name, got {value!r}{cure}"
            )
    _check_mappings(cell)
    for what, group in (
        ("a", (*cell.gates, *cell.inputs)),
        ("U", (*cell.gates, *cell.products)),
        ("s", cell.state_names),
        ("p", tuple(cell.vectors)),
    ):
        for word in group:
            if not isinstance(word, str) or not word.isidentifier() or word.startswith("_"):
                raise CellError(f"{name}: a name in {what}. must be an identifier, got {word!r}")
            if group.count(word) > 1:
                raise CellError(f"{name}: names in {what}. must differ, got {word!r} twice")
    _check_parameters(cell)
    for width in _declared_widths(cell):
        _check_width(cell, width)


def _check_mappings(cell: Cell) -> None:
    """What has a value for each name is a dictionary."""
    for attribute, like in _MAPPINGS.items():
        value = getattr(cell, attribute)
        if not isinstance(value, Mapping):
            raise CellError(
                f"{type(cell).__name__}.{attribute} must be a dictionary, such as {like}, "
                f"got {value!r}"
            )


def _check_held(cell: Cell) -> None:
    """A cell holds numbers and functions: a weight in it would be no parameter of any layer."""
    kinds = type(cell).__mro__
    own = [vars(kind) for kind in reversed(kinds) if not kind.__module__.startswith("throughtime.")]
    for attribute, value in (item for group in (*own, vars(cell)) for item in group.items()):
        for held in _inside(value):
            if _has_weights(held):
                raise CellError(
                    f"{type(cell).__name__}.{attribute} must hold no weights, which no layer would "
                    f"train, move or save, got {type(held).__qualname__}; declare them "
                    f"instead: gates (W and U), products (matrices) and vectors"
                )


def _inside(value: Any) -> Iterator[Any]:
    """The value, or what is in it when it is a tuple, list or dictionary."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for v in value:
            yield from _inside(v)
    else:
        yield getattr(value, "__self__", value)  # a method holds its object


def _check_arguments(cell: Cell) -> None:
    """What a cell was built with cannot change afterwards, since the cell is known by it."""
    for name, value in cell.arguments.items():
        for v in _members(value):
            if hasattr(v, "__setitem__") or isinstance(v, MutableSet):
                raise CellError(
                    f"{type(cell).__name__}: a cell is frozen, so {name} must be a number, a text, "
                    f"a function or a tuple of these, got {type(v).__name__}; give a tuple"
                )


def _members(value: Any) -> Iterator[Any]:
    """The value, or what is in a tuple, however deep."""
    if isinstance(value, tuple):
        for v in value:
            yield from _members(v)
    else:
        yield value


def _has_weights(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return any(True for group in (value.parameters(), value.buffers()) for _ in group)
    return isinstance(value, nn.Parameter)


def _check_parameters(cell: Cell) -> None:
    """Products are pairs, vectors start at a number, and no two parameters share a name."""
    name = type(cell).__name__
    for word, pair in cell.products.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise CellError(f"{name}.products[{word!r}] must be a pair (to, from), got {pair!r}")
    for word, count in cell.blocks.items():
        if word not in cell.products:
            raise CellError(f"{name}.blocks must name products, got {word!r}")
        if count in ("hidden_size", *cell.state_names):
            raise CellError(
                f"{name}.blocks[{word!r}] must be a number, or the name of a number of the cell, "
                f"got {count!r}"
            )
    for word, value in cell.vectors.items():
        if not isinstance(value, int | float):
            raise CellError(f"{name}.vectors[{word!r}] must be a number, got {value!r}")
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    names += [f"initial_{state}" for state in cell.state_names]  # with learn_initial
    for word in (*(f"weight_{product}" for product in cell.products), *cell.vectors):
        if word in names:
            raise CellError(
                f"{name}: two parameters would be named {word}; rename the product or vector"
            )
        names.append(word)
    for word, sign in (*cell.keeps.items(), *cell.writes.items()):
        if word not in (*cell.gates, *cell.vectors) or sign not in (1, -1):
            raise CellError(
                f"{name}: keeps and writes must map a gate or vector to 1 or -1, "
                f"got {word!r}: {sign!r}; there are {', '.join((*cell.gates, *cell.vectors))}"
            )


def _declared_widths(cell: Cell) -> Iterator[Width]:
    if isinstance(cell.state, Mapping):
        yield from cell.state.values()
    for to, source in cell.products.values():
        yield from (to, source)
    yield from cell.blocks.values()
    yield from cell.inputs.values()


def _check_width(cell: Cell, width: Width) -> None:
    try:
        value = cell.width(width, 1)
    except (AttributeError, TypeError, ValueError, RecursionError):
        value = 0
    if value < 1:
        raise CellError(
            f"{type(cell).__name__}: a width must be a positive number, 'hidden_size', a state's "
            f"name or the name of a positive number of the cell, got {width!r}"
        )
