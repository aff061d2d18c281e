"""The one operator: a cell carried through a whole batch of sequences.

Three layers (docs/operator.md says why the obvious ways fail):
    operator.py  the raw ops, opaque to autograd and to the compiler; autocast ends there
    autograd.py  the autograd functions over them
    this file    the front door, in plain Python: layers call `scan`, which chooses who computes
    segments.py  the same, segment after segment of time, for training in little memory
    short.py     one autograd node for the small plain calls that a layer has prepared
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends import OPAQUE, OPEN, choose
from throughtime.backends.call import (
    Call,
    Result,
    has_plain_memory,
    is_rounded,
    is_traced,
    is_watched,
    numbers,
    sequence_count,
)
from throughtime.errors import BackendError, TransformError
from throughtime.scan.autograd import Direct, Scan, tell_counters
from throughtime.scan.operator import flatten, scan_forward, scan_traced
from throughtime.torch_private import (
    DISPATCHED,
    below_transform,
    is_exporting,
    is_functional,
    is_python,
    transform_depth,
)


def scan(call: Call, backend: str = "auto") -> Result:
    """Carry a cell through time.

    Args:
        call: the cell, its weights and the batch.
        backend: a backend's name (it runs or raises), or "auto".

    Returns:
        The sequences (T, B, D, width) and the final states, each (D, B, width).

    Raises:
        BackendError: the named backend cannot run this call.
        TransformError: a transform of torch could not be right here.
    """
    begin_norms(call)
    if torch.compiler.is_compiling():
        return call_operator(call, backend)
    if is_watched() or not has_plain_memory(call):
        return _scan_watched(call, backend)
    return _scan_plain(call, backend)


def _scan_watched(call: Call, backend: str) -> Result:
    """A call that is looked on, or that has a tensor without plain memory."""
    tell_counters()
    if is_traced():  # a plain loop would be written down with its number of steps
        by_torch = backend in ("auto", "torch") and call.lengths is None
        by_torch = by_torch and OPEN["torch"].refuses(call) is None
        if not by_torch and torch.onnx.is_in_onnx_export():
            raise TransformError(
                f"torch.onnx.export with dynamo=False has operators for plain calls of "
                f"throughtime's and torch.nn's RNN, LSTM and GRU alone, not for this call of "
                f"{type(call.cell).__name__}; export with dynamo=True"
            )
        return OPEN["torch"].run(call) if by_torch else call_operator(call, backend)
    if transform_depth():
        name = choose(call, backend).name
        return OPEN[name].run(call) if name in OPEN else call_operator(call, name)
    call = mapped(call, numbers)  # as they are: no sign that waits, no zeros that lie nowhere
    kind = stranger(call)
    if kind is not None:
        return OPEN[choose_open(call, backend, kind)].run(call)
    name = choose(call, backend).name
    if name in OPEN:
        return OPEN[name].run(call)
    tensors = (v for v in flatten(call)[1] if v is not None)
    if is_watched() or any(isinstance(v, DISPATCHED) or is_functional(v) for v in tensors):
        return call_operator(call, name)  # which only the dispatcher can read
    return _scan_plain(call, backend)


def _scan_plain(call: Call, backend: str) -> Result:
    """A call of plain tensors, which no mode or transform watches."""
    name = choose(call, backend).name
    if name in OPEN:
        return OPEN[name].run(call)
    if torch.is_grad_enabled():
        form, tensors = flatten(call)
        if is_recorded(tensors):
            values = Direct.apply(call, name, form, *tensors)  # type: ignore[no-untyped-call]
            return _result(call, values)
    return OPAQUE[name].forward(call, keep=False)[0]


def begin_norms(call: Call) -> None:
    """Norms of gradients, where asked for, are zero until backward fills them."""
    if call.norms is None:
        return
    if torch.compiler.is_compiling() or transform_depth():
        raise TransformError(
            "norms of gradients are written by a plain backward pass, not below torch.compile or "
            "torch.func; call the layer outside of them"
        )
    call.norms.zero_()


def is_recorded(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd records what is done with one of these."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)


def call_operator(call: Call, backend: str = "auto") -> Result:
    """The same through the opaque operator: one node in a graph, whatever T and B."""
    if is_rounded(call.x):
        call = call.in_weights_dtype()  # what is compiled runs the op without autocast
    form, tensors = flatten(call)
    compiling = torch.compiler.is_compiling()
    if compiling:
        tensors = _apart(tensors)
    below = below_transform() if compiling else bool(transform_depth())
    recorded = is_recorded(tensors)
    if is_traced():
        some = [v for v in tensors if v is not None]
        given = [int(v is not None) for v in tensors]
        values = scan_traced(call.cell.key, backend, list(form), given, some)
    elif compiling and (below or not recorded):
        # The compiler cannot trace the function below torch.func, nor where nothing is recorded;
        # the op itself has a rule for vmap, and its guard raises where a derivative would be lost.
        values = scan_forward(call.cell.key, backend, list(form), False, tensors)
    else:
        keep = below or (recorded and not is_exporting())
        values = Scan.apply(call.cell.key, backend, tuple(form), keep, *tensors)  # type: ignore[no-untyped-call]
    return _result(call, values)


def _result(call: Call, values: Sequence[Tensor]) -> Result:
    count = sequence_count(call)
    return Result(tuple(values[:count]), tuple(values[count : count + len(call.cell.state_names)]))


def _apart(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """The same tensors, each once: the compiler gives a function no tensor in two places."""
    different: list[Tensor | None] = []
    for v in tensors:
        different.append(v.view_as(v) if v is not None and any(v is w for w in different) else v)
    return different


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
