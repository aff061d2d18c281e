"""How torch's functions that compute over dimensions read on tensors with heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from throughtime.compiler.graph import Builder, Untraceable
from throughtime.compiler.heads.parts import (
    Parts,
    along_rows,
    has_units,
    is_parts,
    opened,
    parts,
    pointwise,
    reduced,
)
from throughtime.compiler.heads.views import axis
from throughtime.compiler.symbols import Symbol


class Greatest(NamedTuple):
    """What torch.max over a dimension gives; the places cannot be asked for."""

    values: Any


def _row(op: str, *constants: Any) -> Callable[[Symbol], Symbol]:
    """Over the units of a value; one unit is its own sum and greatest, and its norm is not."""

    def write(x: Symbol) -> Symbol:
        shape = (*x.symbolic_shape[:-1], "1")
        if x.symbolic_shape == shape:
            return x.write("abs") if op == "row_norm" else x
        return x.reshaped(op, shape, constants)

    return write


def _axes(value: Parts, dim: Any) -> tuple[int, ...]:
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    return tuple(axis(value, d) for d in dims)


def _sum(value: Parts, dim: Any, keepdim: bool = False) -> Any:
    return reduced(value, _axes(value, dim), keepdim, _row("row_sum"), torch.add)


def _mean(value: Parts, dim: Any, keepdim: bool = False) -> Any:
    count = int(np.prod([value.units.shape[k] for k in _axes(value, dim)], dtype=int))
    return _sum(value, dim, keepdim) / count


def _amax(value: Parts, dim: Any, keepdim: bool = False) -> Any:
    axes = _axes(value, dim)
    if len(axes) == 1 and axes[0] == value.units.ndim - 1:
        return reduced(value, axes, keepdim, _row("row_max", "even"), _no_join)
    if len(axes) != 1:
        raise Untraceable("the greatest number over several dimensions")
    heads = np.moveaxis(value.units, axes[0], 0)
    largest = _amax_of([Parts(value.builder, v, value.rows) for v in heads])
    kept = np.expand_dims(opened(largest).units, axes[0])
    return parts(value.builder, kept, value.rows) if keepdim else largest


def _amax_of(values: Sequence[Any]) -> Any:
    """The greatest, number by number; equal ones share its gradient evenly, as torch has it."""
    greatest: Any = values[0].detach()
    for v in values[1:]:
        greatest = torch.maximum(greatest, v.detach())
    equal = [torch.where(v == greatest, torch.ones_like(v), torch.zeros_like(v)) for v in values]
    count = sum(equal[1:], equal[0])
    shares = [(v - v.detach()) * e / count for v, e in zip(values, equal, strict=True)]
    return sum(shares, greatest)


def _norm(value: Parts, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    axes = _axes(value, dim)
    if p not in (2, "fro", None) or any(k != value.units.ndim - 1 for k in axes):
        raise Untraceable("a norm other than that of the last dimension's squares")

    return reduced(value, axes, keepdim, _row("row_norm"), _no_join)


def _softmax(value: Parts, dim: Any, dtype: Any = None, _stacklevel: int = 3) -> Any:
    if axis(value, dim) == value.units.ndim - 1:
        return along_rows(value, lambda x: x.write("softmax"))
    e: Any = torch.exp(value - _amax(value, dim, True).detach())
    return e / _sum(opened(e), dim, True)


def _cumsum(value: Parts, dim: Any) -> Any:
    if axis(value, dim) != value.units.ndim - 1:
        raise Untraceable("a running sum over other dimensions than the last")
    return along_rows(value, lambda x: x.write("cumsum"))


def _normalised(
    function: Callable[..., Any], value: Parts, normalized_shape: Any, weight: Any = None,
    *others: Any, **named: Any,
) -> Any:  # fmt: skip
    """layer_norm or rms_norm over the last dimension, then weight and bias."""
    bias = named.pop("bias", None)
    if function is torch.nn.functional.layer_norm:
        bias, others = (others[0], (None, *others[1:])) if others else (bias, ())
    if tuple(normalized_shape) != value.units.shape[-1:]:
        raise Untraceable("normalisation over other dimensions than the last")

    def write(x: Symbol) -> Any:
        return function(x, x.shape[-1:], None, *others, **named)

    normed = along_rows(value, write)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _matmul(input: Any, other: Any) -> Any:
    """Of what rows have, each its own."""
    x, w = opened(input), opened(other)
    if not (x.rows and w.rows) or x.units.ndim < 1 or w.units.ndim < 1:
        raise Untraceable("a product of tensors that are not both of rows")
    letters = "abcdefgh"
    lead = letters[: max(x.units.ndim, w.units.ndim) - 2]
    one = lead[len(lead) - (x.units.ndim - 2) :] + "ij" if x.units.ndim > 1 else ""
    two = lead[len(lead) - (w.units.ndim - 2) :] + "jk" if w.units.ndim > 1 else ""
    if not one or not two:
        raise Untraceable("a product over the rows")
    return _contracted(x.builder, [(one, x), (two, w)], lead + "ik")


def _einsum(equation: str, *operands: Any) -> Any:
    listed = len(operands) == 1 and isinstance(operands[0], list | tuple)
    given: Any = operands[0] if listed else operands
    sources, arrow, to = equation.replace(" ", "").partition("->")
    words = sources.split(",")
    if not arrow or "." in equation or len(words) != len(given):
        raise Untraceable("an einsum without ->, or with dots")
    terms = []
    row = ""
    for word, value in zip(words, (opened(v) for v in given), strict=True):
        if len(set(word)) != len(word):
            raise Untraceable("an einsum with a letter twice in one word")
        row = word[0] if value.rows else row
        terms.append((word[1:] if value.rows else word, value))
    if not row or to[:1] != row or any(row in word for word, _ in terms):
        raise Untraceable("an einsum over the rows")
    builder = next(v.builder for _, v in terms)
    return _contracted(builder, terms, to[1:])


def _contracted(builder: Builder, operands: list[tuple[str, Parts]], to: str) -> Any:
    """The sum over all letters that are not in `to` of the product of the operands."""
    sizes = {c: n for word, v in operands for c, n in zip(word, v.units.shape, strict=True)}
    summed = [c for c in sizes if c not in to]
    last = _last(operands, sizes, to)
    order = [c for c in (*to, *summed) if c != last] + [last]
    views = [_spread(word, v, order, sizes) for word, v in operands]
    total: Any = views[0]
    for v in views[1:]:
        total = pointwise(builder, torch.mul, [total, v])
    for c in summed:
        total = _sum(opened(total), order.index(c) - len(order), False)
        order.remove(c)
    result = opened(total)
    return parts(builder, result.units.transpose([order.index(c) for c in to]), True)


def _last(operands: list[tuple[str, Parts]], sizes: dict[str, int], to: str) -> str:
    """The letter along which most operands lie unit by unit."""

    def fits(c: str) -> tuple[int, bool, int]:
        good = sum(word.endswith(c) or c not in word for word, _ in operands)
        return good, to.endswith(c), sizes[c]

    return max(sizes, key=fits)


def _spread(word: str, value: Parts, order: list[str], sizes: dict[str, int]) -> Parts:
    """An operand with all letters in order, the same along those it has not."""
    there = [c for c in order if c in word]
    units = value.units.transpose([word.index(c) for c in there])
    shape = [sizes[c] if c in word else 1 for c in order]
    units = np.broadcast_to(units.reshape(shape), [sizes[c] for c in order])
    return Parts(value.builder, units, value.rows)


def _greatest(sign: int) -> Callable[..., Any]:
    def rule(value: Any, dim: Any, keepdim: bool = False) -> Greatest:
        if type(dim) is not int or axis(value, dim) != value.units.ndim - 1:
            raise Untraceable("the greatest number over other dimensions than the last")
        one = value if sign > 0 else opened(-value)
        largest = reduced(one, (value.units.ndim - 1,), keepdim, _row("row_max", "first"), _no_join)
        return Greatest(largest if sign > 0 else -largest)

    return rule


def _no_join(x: Any, y: Any) -> Any:
    raise Untraceable("a norm or the greatest number of a part of two values")


OVER: Final[dict[str, Callable[..., Any]]] = {
    "sum": _sum,
    "mean": _mean,
    "amax": _amax,
    "amin": lambda value, dim, keepdim=False: -_amax(opened(-value), dim, keepdim),
    "max": _greatest(1),
    "min": _greatest(-1),
    "norm": _norm,
    "linalg_vector_norm": lambda value, ord=2, dim=None, keepdim=False: _norm(
        value, ord, dim, keepdim
    ),
    "softmax": _softmax,
    "cumsum": _cumsum,
    "layer_norm": partial(_normalised, torch.nn.functional.layer_norm),
    "rms_norm": partial(_normalised, torch.nn.functional.rms_norm),
}
"""Of one tensor, over dimensions of it."""

_OF_LINES: Final = frozenset({"softmax", "cumsum", "layer_norm", "rms_norm"})

PRODUCTS: Final[dict[str, Callable[..., Any]]] = {
    "matmul": _matmul,
    "bmm": _matmul,
    "einsum": _einsum,
}


def over(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The rule's value; NotImplemented where the name has none, or a value needs none."""
    if name in PRODUCTS:
        return PRODUCTS[name](*args, **kwargs)
    value: Any = args[0] if args else None
    if name not in OVER or not has_units(value):
        return NotImplemented
    two = (*args[1:2], *kwargs.values())
    if name in _OF_LINES and not is_parts(value):
        return NotImplemented  # a value of a row has rules of its own
    if name in ("max", "min") and any(is_parts(v) or type(v) is Symbol for v in two):
        return NotImplemented
    return OVER[name](opened(value), *args[1:], **kwargs)
