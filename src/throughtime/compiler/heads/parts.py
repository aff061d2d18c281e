"""Tensors of more than one width, while a step is written at the sizes of a layer: (B, heads, d).

A `Parts` says for each of its numbers which unit of which value of a row it is. So views (reshape,
chunk, transpose, slices) only move these words, and what computes is written for values of a row:
for all units at once where they lie as in one value, else for each head by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from throughtime.compiler.graph import BOOLEAN, Builder, Untraceable
from throughtime.compiler.symbols import (
    Headed,
    Symbol,
    find_method,
    value_asked,
)

MOST: Final = 64
"""Values that one operation may be written for: each is a loop in code."""

_UNITS: Final = 1 << 32


class Parts(Headed):
    """A tensor (B, ...) or, of per-unit vectors, (...).

    Args:
        builder: of the graph.
        units: for each number its value's node and unit, as node * 2**32 + unit.
        rows: whether the first dimension is B, which `units` leaves out.
    """

    __slots__ = ("builder", "rows", "units")

    def __init__(self, builder: Builder, units: np.ndarray, rows: bool) -> None:
        self.builder, self.units, self.rows = builder, units, rows

    @property
    def shape(self) -> tuple[Any, ...]:
        """B, which no step may ask for, and the sizes."""
        first = (Symbol(self.builder, self.builder.node("width", (), ("B",), ())),)
        return (*(first if self.rows else ()), *self.units.shape)

    @property
    def ndim(self) -> int:
        """Dimensions, B among them."""
        return self.units.ndim + self.rows

    def __getattr__(self, name: str) -> Any:
        method = find_method(self, name)
        if method is not None:
            return method
        if name in ("mT", "T"):
            return parts(self.builder, self.units.swapaxes(-1, -2), self.rows)
        raise Untraceable(f"a tensor's {name} is not known while a step is written")

    def __len__(self) -> int:
        if self.rows:
            raise value_asked(self.builder, "len()")
        return len(self.units)

    def closed(self) -> Symbol:
        """A tensor (B, width) as a value of a row."""
        if not self.rows or self.units.ndim != 1:
            raise Untraceable("a state that is no vector")
        return joined(self.builder, self.units, wide=True)

    def multiplied_by(self, matrix: Any) -> Any:
        """The matrix times each line of the last dimension."""
        products = [opened(v).units for v in each_row(self, lambda x: matrix @ x)]
        shape = (*self.units.shape[:-1], len(products[0]))
        return parts(self.builder, np.stack(products).reshape(shape), self.rows)

    def __iter__(self) -> Iterator[Any]:
        raise value_asked(self.builder, "iterating over it")

    def __repr__(self) -> str:
        shape = ["B"] * self.rows + [*map(str, self.units.shape)]
        return f"<a tensor of shape ({', '.join(shape)})>"

    __hash__ = object.__hash__


def is_parts(value: Any) -> bool:
    return type(value) is Parts


def has_units(value: Any) -> bool:
    """Whether a value is that, or one of a row: both can be `opened`."""
    return is_parts(value) or (type(value) is Symbol and bool(value.symbolic_shape))


def opened(value: Symbol | Parts) -> Parts:
    """A value of a row as the words of its units."""
    if isinstance(value, Parts):
        return value
    shape, builder = value.symbolic_shape, value.builder
    if not shape or len(shape) > 2:
        raise Untraceable("a number has no units")
    units = value.index * _UNITS + np.arange(builder.number_of(shape[-1]))
    return Parts(builder, units, len(shape) == 2)


def parts(builder: Builder, units: np.ndarray, rows: bool) -> Any:
    """These units as a tensor: a value of a row where it is (B, width), however it is made."""
    if rows and units.ndim == 1 and units.size and not _is_constant(units):
        return joined(builder, units)
    return Parts(builder, units, rows)


def _is_constant(units: np.ndarray) -> bool:
    return units.size > 0 and bool((units == units.flat[0]).all())


def _is_whole(builder: Builder, units: np.ndarray) -> bool:
    """Whether the units are those of one value, all of them in order."""
    first = int(units[0])
    node = builder.nodes[first // _UNITS]
    width = builder.number_of(node.shape[-1])
    return first % _UNITS == 0 and width == len(units) and bool((np.diff(units) == 1).all())


def runs(units: np.ndarray) -> list[np.ndarray]:
    """The units cut where they do not follow one another."""
    return np.split(units, np.flatnonzero(np.diff(units) != 1) + 1)


def joined(builder: Builder, units: np.ndarray, wide: bool = False) -> Symbol:
    """The value of a row that has these units; the same everywhere, one number, unless `wide`."""
    if _is_constant(units) and not (wide and len(units) > 1):
        return _run(builder, units[:1])
    if _is_constant(units):
        shape = ("B", builder.width_name(len(units)))
        zeros = Symbol(builder, builder.node("full", (), (0.0, *shape), shape))
        return zeros.write("add", _run(builder, units[:1]))
    pieces = runs(units)
    if len(pieces) > MOST:
        raise Untraceable(f"a value made of {len(pieces)} parts of others, and {MOST} is the most")
    values = [_run(builder, run) for run in pieces]
    if len(values) == 1:
        return values[0]
    ends = np.cumsum([0, *map(len, pieces)]).tolist()
    shape = ("B", builder.width_name(len(units)))
    return Symbol(builder, builder.node("cat", tuple(v.index for v in values), (*ends,), shape))


def _run(builder: Builder, units: np.ndarray) -> Symbol:
    """Units of one value that follow one another."""
    first, count = int(units[0]), len(units)
    index, start = divmod(first, _UNITS)
    if _is_whole(builder, units):
        return Symbol(builder, index)
    if builder.nodes[index].op in BOOLEAN:
        raise Untraceable("a part of truth values")
    shape = ("B", builder.width_name(count))
    return Symbol(builder, builder.node("slice", (index,), (start, start + count), shape))


def broadcast_parts(values: list[Parts]) -> tuple[list[np.ndarray], bool]:
    """The units of each, in one shape; and whether there are rows."""
    rows = any(v.rows for v in values)
    of_rows = {v.units.ndim for v in values if v.rows}
    if len(of_rows) > 1 or any(v.units.ndim > max(of_rows, default=99) for v in values):
        raise Untraceable("tensors of rows with unlike dimensions")
    try:
        return list(np.broadcast_arrays(*(v.units for v in values))), rows
    except ValueError as error:
        raise Untraceable(f"shapes do not fit: {error}") from None


def pointwise(builder: Builder, write: Callable[..., Any], values: list[Any]) -> Any:
    """An operation on each number.

    Args:
        builder: of the graph.
        write: the operation on values of a row.
        values: symbols, parts, and what is neither.
    """
    places = [i for i, v in enumerate(values) if has_units(v)]
    arrays, rows = broadcast_parts([opened(values[i]) for i in places])
    shape = arrays[0].shape
    if 0 in shape:
        raise Untraceable("a tensor without numbers")
    lead = _leading(builder, arrays, shape)
    count = int(np.prod(shape[:lead], dtype=int))
    if count > MOST:
        raise Untraceable(f"an operation on {count} heads, and {MOST} is the most")
    cut = [v.reshape(count, -1) for v in arrays]
    results = []
    for k in range(count):
        given = list(values)
        for i, v in zip(places, cut, strict=True):
            given[i] = joined(builder, v[k])
        results.append(_units_of(builder, write(*given), cut[0].shape[1]))
    return parts(builder, np.stack(results).reshape(shape), rows)


def _units_of(builder: Builder, value: Any, count: int) -> np.ndarray:
    """The units of a result, of which one number a row stands for all."""
    if type(value) is not Symbol or not value.symbolic_shape:
        raise Untraceable("an operation whose result has no units")
    units = opened(value).units
    return units if len(units) == count else np.full(count, units[0])


def _leading(builder: Builder, arrays: list[np.ndarray], shape: tuple[int, ...]) -> int:
    """The fewest leading dimensions over which all values are taken apart."""
    for lead in range(len(shape)):
        count = int(np.prod(shape[:lead], dtype=int))
        rows = [row for v in arrays for row in v.reshape(count, -1)]
        if count <= MOST and all(_is_constant(v) or _is_whole(builder, v) for v in rows):
            return lead
    return max(0, len(shape) - 1)


def each_row(value: Parts, write: Callable[[Symbol], Any]) -> list[Any]:
    """What `write` gives for each line of the last dimension."""
    lines = value.units.reshape(-1, value.units.shape[-1])
    if len(lines) > MOST:
        raise Untraceable(f"an operation on {len(lines)} heads, and {MOST} is the most")
    return [write(joined(value.builder, line, wide=True)) for line in lines]


def along_rows(value: Parts, write: Callable[[Symbol], Any]) -> Any:
    """An operation on each line of the last dimension that gives a line."""
    lines = [_units_of(value.builder, v, value.units.shape[-1]) for v in each_row(value, write)]
    return parts(value.builder, np.stack(lines).reshape(value.units.shape), value.rows)


def reduced(
    value: Parts, axes: tuple[int, ...], keep: bool, row: Callable[[Symbol], Symbol],
    join: Callable[[Any, Any], Any],
) -> Any:  # fmt: skip
    """A sum or greatest number over dimensions.

    Args:
        value: of what.
        axes: of `units`, not negative.
        keep: whether they stay, as 1.
        row: it, over the units of a value of a row.
        join: of two values.
    """
    units, builder = value.units, value.builder
    last = units.ndim - 1
    if last in axes:
        others = [i for i in range(units.ndim) if i not in axes]
        moved = units.transpose(*others, *sorted(axes))
        lines = moved.reshape(int(np.prod([units.shape[i] for i in others], dtype=int)), -1)
        if len(lines) > MOST or any(len(_pieces(builder, v)) > MOST for v in lines):
            raise Untraceable("a sum over many parts of values")
        totals = [_over(builder, line, row, join) for line in lines]
        shape = tuple(1 if i in axes else n for i, n in enumerate(units.shape))
        kept = np.array([v.index * _UNITS for v in totals]).reshape(shape)
    else:
        kept = _across(value, axes, join)
    if not keep:
        kept = kept.squeeze(axes)
    return parts(builder, kept, value.rows)


def _pieces(builder: Builder, line: np.ndarray) -> list[np.ndarray]:
    return [line] if _is_whole(builder, line) else runs(line)


def _over(
    builder: Builder, line: np.ndarray, row: Callable[[Symbol], Symbol],
    join: Callable[[Any, Any], Any],
) -> Symbol:  # fmt: skip
    """Over the units of a line: of each value's own, then of these numbers."""
    totals = [row(joined(builder, run)) for run in _pieces(builder, line)]
    total = totals[0]
    for other in totals[1:]:
        total = join(total, other)
    return total


def _across(value: Parts, axes: tuple[int, ...], join: Callable[[Any, Any], Any]) -> np.ndarray:
    """Over heads: number by number."""
    units = np.moveaxis(value.units, axes, range(len(axes)))
    units = units.reshape(-1, *units.shape[len(axes) :])
    total: Any = Parts(value.builder, units[0], value.rows)
    for k in range(1, len(units)):
        total = pointwise(value.builder, join, [total, Parts(value.builder, units[k], value.rows)])
    return np.expand_dims(opened(total).units, axes)
