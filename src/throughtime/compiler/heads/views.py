"""How torch's functions read on tensors with heads: views of units, then operations on values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from throughtime.compiler.graph import Untraceable
from throughtime.compiler.heads.parts import Parts, has_units, opened, parts
from throughtime.compiler.symbols import Symbol

Rule = Callable[..., Any]


def axis(value: Parts, dim: Any) -> int:
    """The dimension of `units` that torch's number means; B is none."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise Untraceable("a dimension that is no number")
    place = (dim + value.ndim if dim < 0 else dim) - value.rows
    if not 0 <= place < value.units.ndim:
        raise Untraceable("an operation over the rows")
    return place


def _sizes(value: Parts, wanted: Sequence[Any]) -> tuple[int, ...]:
    """The sizes wanted for, without that of the rows."""
    if len(wanted) == 1 and isinstance(wanted[0], tuple | list):
        wanted = wanted[0]
    sizes = list(wanted)
    if value.rows:
        first = sizes.pop(0) if sizes else None
        joined = type(first) is int and first == -1 and -1 not in sizes
        if not _is_rows(first) and not joined:
            raise Untraceable("a view whose first dimension is not the rows")
        if joined and int(np.prod(sizes, dtype=int)) != value.units.size:
            raise Untraceable("a view that joins rows and units")
    if not all(isinstance(n, int) for n in sizes):
        raise Untraceable("a size that is no number")
    return tuple(sizes)


def _is_rows(size: Any) -> bool:
    """Whether a size is B."""
    if type(size) is not Symbol:
        return False
    node = size.builder.nodes[size.index]
    return node.op == "width" and node.constants == ("B",)


def _changed(value: Parts, units: np.ndarray) -> Any:
    return parts(value.builder, units, value.rows)


def _view(value: Parts, *sizes: Any) -> Any:
    try:
        return _changed(value, value.units.reshape(_sizes(value, sizes)))
    except ValueError as error:
        raise Untraceable(str(error)) from None


def _unflatten(value: Parts, dim: int, sizes: Sequence[int]) -> Any:
    k, shape = axis(value, dim), value.units.shape
    return _changed(value, value.units.reshape(*shape[:k], *sizes, *shape[k + 1 :]))


def _flatten(value: Parts, start_dim: int = 0, end_dim: int = -1) -> Any:
    first, last, shape = axis(value, start_dim), axis(value, end_dim), value.units.shape
    return _changed(value, value.units.reshape(*shape[:first], -1, *shape[last + 1 :]))


def _unsqueeze(value: Parts, dim: int) -> Any:
    return _changed(value, _opened_at(value, dim).units)


def _squeeze(value: Parts, dim: Any) -> Any:
    axes = [axis(value, d) for d in (dim if isinstance(dim, tuple) else (dim,))]
    return _changed(value, value.units.squeeze(tuple(k for k in axes if value.units.shape[k] == 1)))


def _transpose(value: Parts, dim0: int, dim1: int) -> Any:
    return _changed(value, value.units.swapaxes(axis(value, dim0), axis(value, dim1)))


def _permute(value: Parts, *dims: Any) -> Any:
    order = list(dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims)
    if value.rows and order.pop(0) != 0:
        raise Untraceable("an operation over the rows")
    return _changed(value, value.units.transpose([axis(value, d) for d in order]))


def _expand(value: Parts, *sizes: Any) -> Any:
    wanted = list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes)
    if value.rows and not _is_rows(wanted[0]) and type(wanted[0]) is not int:
        raise Untraceable("an operation over the rows")
    shape = wanted[1:] if value.rows else wanted
    own = (1,) * (len(shape) - value.units.ndim) + value.units.shape
    shape = [m if n == -1 else n for n, m in zip(shape, own, strict=True)]
    return _changed(value, np.broadcast_to(value.units, shape))


def _cut(value: Parts, k: int, ends: list[int]) -> tuple[Any, ...]:
    return tuple(_changed(value, v) for v in np.split(value.units, ends, k))


def _chunk(value: Parts, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    k = axis(value, dim)
    return _split(value, -(-value.units.shape[k] // chunks), dim)


def _split(value: Parts, split_size: Any, dim: int = 0) -> tuple[Any, ...]:
    k = axis(value, dim)
    if isinstance(split_size, int):
        return _cut(value, k, list(range(split_size, value.units.shape[k], split_size)))
    return _cut(value, k, np.cumsum(split_size)[:-1].tolist())


def _narrow(value: Parts, dim: int, start: int, length: int) -> Any:
    k = axis(value, dim)
    return _changed(value, value.units.take(range(start, start + length), k))


def _select(value: Parts, dim: int, index: int) -> Any:
    return _changed(value, value.units.take(index, axis(value, dim)))


def _unbind(value: Parts, dim: int = 0) -> tuple[Any, ...]:
    k = axis(value, dim)
    return tuple(_select(value, dim, i) for i in range(value.units.shape[k]))


def _roll(value: Parts, shifts: Any, dims: Any) -> Any:
    axes = tuple(axis(value, d) for d in (dims if isinstance(dims, tuple | list) else (dims,)))
    return _changed(value, np.roll(value.units, shifts, axes if len(axes) > 1 else axes[0]))


def _flip(value: Parts, *dims: Any) -> Any:
    wanted = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    return _changed(value, np.flip(value.units, tuple(axis(value, d) for d in wanted)))


def _getitem(value: Parts, index: Any) -> Any:
    words = list(index if isinstance(index, tuple) else (index,))
    if not all(w is None or w is Ellipsis or type(w) in (int, slice) for w in words):
        raise Untraceable("an index that is no number, slice or None")
    if Ellipsis in words:
        k = words.index(Ellipsis)
        missing = value.ndim - sum(w is not None for w in words) + 1
        words[k : k + 1] = [slice(None)] * missing
    if value.rows and (not words or words.pop(0) != slice(None)):
        raise Untraceable("an operation over the rows")
    return _changed(value, value.units[tuple(words)])


def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    first, *others = (opened(v) for v in tensors)
    units = np.concatenate([v.units for v in (first, *others)], axis(first, dim))
    return parts(first.builder, units, first.rows)


def _stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    return _cat([_opened_at(opened(v), dim) for v in tensors], dim)


def _opened_at(value: Parts, dim: int) -> Parts:
    place = (dim + value.ndim + 1 if dim < 0 else dim) - value.rows
    if place < 0:
        raise Untraceable("an operation over the rows")
    return Parts(value.builder, np.expand_dims(value.units, place), value.rows)


VIEWS: Final[dict[str, Rule]] = {
    **{
        rule.__name__.removeprefix("_"): rule
        for rule in (
            _view, _unflatten, _flatten, _unsqueeze, _squeeze, _transpose, _permute, _expand,
            _chunk, _split, _narrow, _select, _unbind, _roll, _flip, _getitem,
        )
    },
    "reshape": _view,
    "swapaxes": _transpose,
    "expand_as": lambda value, other: _expand(value, *other.shape),
    "contiguous": lambda value: _changed(value, value.units),
    "clone": lambda value: _changed(value, value.units),
}  # fmt: skip
"""Of one tensor."""

OF_MANY: Final[dict[str, Rule]] = {"cat": _cat, "concat": _cat, "stack": _stack}
"""Of a list of tensors."""


def view(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The rule's value; NotImplemented where the name has none."""
    if name in OF_MANY:
        return OF_MANY[name](*args, **kwargs)
    if name not in VIEWS or not args or not has_units(args[0]):
        return NotImplemented
    return VIEWS[name](opened(args[0]), *args[1:], **kwargs)
