"""A call as flat tensors and a few numbers: the only thing an operator of torch can be given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from throughtime.backends.call import Call, Gradients, sequence_count
from throughtime.cells import Cell


class Form(NamedTuple):
    """Everything about a call that is no tensor and no name: how its tensor list is read.

    The last number says how many tensors the call gives: its sequences and final states.
    """

    hidden_size: int
    directions: int
    bias: int
    state: int
    initial: int
    zoneout: int
    record: int
    results: int


def flatten(call: Call) -> tuple[Form, list[Tensor | None]]:
    """The call's form and its tensors, in one fixed order; but for `norms`, which is no input."""
    form = Form(
        call.hidden_size,
        len(call.weights),
        int("bias_ih" in call.weights[0] or "bias_hh" in call.weights[0]),
        int(call.state is not None),
        int(call.initial is not None),
        int(call.zoneout is not None),
        int(call.record),
        sequence_count(call) + len(call.cell.state_names),
    )
    single = [call.x, call.lengths, call.reset, call.batch_sizes, call.recurrent_mask, call.clip]
    weights = [v for weights in call.weights for v in weights.values()]
    inputs = [(call.inputs or {})[n] for n in call.cell.layout.inputs]
    groups = (weights, inputs, call.state or (), call.initial or (), call.zoneout or ())
    return form, [*single, *(v for group in groups for v in group)]


def unflatten(cell: Cell, form: Sequence[int], tensors: Sequence[Tensor | None]) -> Call:
    """The call that `flatten` took apart."""
    f = Form(*form)
    rest: Iterator[Tensor] = iter(tensors[6:])  # type: ignore[arg-type]
    names = cell.layout.names(bool(f.bias))
    weights = tuple([dict(zip(names, rest, strict=False)) for _ in range(f.directions)])
    direct, count = cell.layout.inputs, len(cell.state_names)
    inputs = {name: next(rest) for name in direct}
    state, initial, zoneout = (
        tuple(islice(rest, count)) if given else None for given in (f.state, f.initial, f.zoneout)
    )
    x, lengths, reset, batch_sizes, mask, clip = tensors[:6]
    assert x is not None
    return Call(
        cell, f.hidden_size, x, weights, state, initial, lengths, reset, batch_sizes,
        inputs, mask, zoneout, bool(f.record), clip,
    )  # fmt: skip


def flatten_gradients(call: Call, grads: Gradients) -> list[Tensor | None]:
    """Gradients in the order of the call's tensors; None where there is none to be had."""
    weights = [g.get(n) for w, g in zip(call.weights, grads.weights, strict=True) for n in w]
    inputs = [grads.inputs.get(n) for n in call.cell.layout.inputs]
    state = list(grads.start) if call.state is not None else []
    initial: list[Tensor | None] = []
    if call.initial is not None:
        initial = _by_initial(call, grads)
    zoneout = [None] * len(call.zoneout or ())
    return [grads.x, *[None] * 5, *weights, *inputs, *state, *initial, *zoneout]


def _by_initial(call: Call, grads: Gradients) -> list[Tensor | None]:
    """By `initial`: from the start, unless a state is given, and from resets."""
    resets = grads.initial or (None,) * len(grads.start)
    if call.state is not None:
        return list(resets)
    starts = (v.sum(1) for v in grads.start)
    return [v if r is None else v + r for v, r in zip(starts, resets, strict=True)]
