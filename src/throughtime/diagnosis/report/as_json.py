"""Dataclasses of numbers as JSON and back; what is not finite is written as a word."""

from __future__ import annotations

import json
import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any) -> str:
    """A dataclass of numbers, words, tuples and dataclasses as JSON; NaN and infinity as words."""
    return json.dumps(_simplify(value), allow_nan=False)


def from_json(kind: type[T], text: str) -> T:
    """The dataclass again.

    Raises:
        ValueError: the text is no JSON, or not of such a dataclass.
    """
    try:
        built: T = _build(kind, json.loads(text))
    except (KeyError, TypeError) as error:
        raise ValueError(f"the text is not the JSON of a {kind.__name__}: {error!r}") from error
    return built


def _simplify(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _simplify(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_simplify(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _build(kind: Any, value: Any) -> Any:
    """What a type hint says, of what JSON has."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_build(k, v) for k, v in zip(each, value, strict=True))
    if isinstance(kind, types.UnionType):
        return None if value is None else _build(get_args(kind)[0], value)
    return float(value) if kind is float else value
