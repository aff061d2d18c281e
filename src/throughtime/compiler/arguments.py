"""Reading the arguments of torch's functions while a graph is written."""

from __future__ import annotations

from typing import Any

from throughtime.compiler.builder import Builder, Untraceable
from throughtime.compiler.graph import Constant
from throughtime.compiler.symbol import Symbol, lift


class NoRule(Exception):
    """These arguments of a known function have no rule."""


def builder_of(*values: Any) -> Builder:
    """The builder of the first symbol among the values."""
    for value in values:
        if type(value) is Symbol:
            return value.builder
    raise Untraceable("no symbol among the arguments")


def write(op: str, *values: Any, constants: tuple[Constant, ...] = ()) -> Symbol:
    """A pointwise node on symbols and numbers, at least one of them a real-valued symbol."""
    builder = builder_of(*values)
    symbols = [lift(builder, v) for v in values]
    if all(s.is_boolean or s.is_number for s in symbols):
        raise NoRule  # torch computes these in whole numbers, or in its default precision
    return symbols[0].write(op, *symbols[1:], constants=constants)


def number(value: Any) -> float:
    """A plain number among the arguments."""
    if type(value) is Symbol and value.is_number:
        value = value.builder.nodes[value.index].constants[0]
    if type(value) is Symbol or not isinstance(value, int | float):
        raise NoRule
    return float(value)


def left_out(value: Any) -> None:
    """An option that must be left out, since it has no rule."""
    if value is not None:
        raise NoRule
