"""Calls that may not go straight to a backend: somebody looks on, or memory is not plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends import OPAQUE, OPEN, choose
from throughtime.backends.call import Call
from throughtime.errors import BackendError
from throughtime.scan.flatten import flatten
from throughtime.scan.plain import numbers
from throughtime.torch_private import DISPATCHED, is_functional, is_python


def resolved(call: Call) -> Call:
    """The call with its numbers as they are: no sign that waits, no zeros that lie nowhere."""
    return mapped(call, numbers)


def mapped(call: Call, change: Callable[[Tensor], Tensor]) -> Call:
    """The call with another tensor for each."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, Mapping):
            return {n: change(v) for n, v in value.items()}
        return tuple(of(v) for v in value) if isinstance(value, tuple) else value

    return Call(call.cell, call.hidden_size, *(of(value) for value in call[2:]))


def stranger(call: Call) -> str | None:
    """The kind of a tensor that has no plain memory, nor a rule by which an operator takes it."""
    weights = {id(v) for one in call.weights for v in one.values()}
    for v in flatten(call)[1]:
        if v is None or isinstance(v, DISPATCHED):
            continue
        if id(v) in weights and _overrides(type(v)):
            return type(v).__name__
        if v.layout != torch.strided:
            raise TypeError(
                f"weights, states and inputs must be dense tensors, got one of layout {v.layout}; "
                f"convert it with .to_dense()"
            )
        if is_python(v):
            return type(v).__name__
    return None


def _overrides(kind: type[Tensor]) -> bool:
    """Whether a class has ways of its own for torch's functions."""
    way: Any = kind.__torch_function__
    usual: Any = Tensor.__torch_function__
    return (
        way is not nn.Parameter.__torch_function__  # which has none of its own
        and getattr(way, "__func__", way) is not usual.__func__
    )


def is_dispatched(call: Call) -> bool:
    """Whether a tensor of the call is one that only the dispatcher can read."""
    return any(
        isinstance(v, DISPATCHED) or is_functional(v) for v in flatten(call)[1] if v is not None
    )


def choose_open(call: Call, backend: str, kind: str) -> str:
    """Who computes a call with a tensor of that kind: a backend made of torch's own operations."""
    if backend in OPAQUE:
        raise BackendError(
            f"backend {backend!r} cannot run this call: it reads plain memory, and is given a "
            f"{kind}; use backend='auto'"
        )
    if backend in OPEN:
        return choose(call, backend).name
    return next(name for name, one in OPEN.items() if one.refuses(call) is None)
