"""Plain calls of a prepared layer: `scan` without all that such calls do not use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.backends import OPAQUE
from throughtime.backends.cpu.memory import lend
from throughtime.backends.cpu.short import Derivative, ShortForward, Wants, Way
from throughtime.scan.autograd import derivative
from throughtime.scan.flatten import Form, flatten_gradients, unflatten
from throughtime.scan.outputs import kept_output, recall
from throughtime.scan.plain import is_watched, plain_gradients

_OTHERS = (None,) * 5
"""Tensors of a call, behind x as `flatten` orders them, that a plain one does not have."""

_BEHIND = 1 + len(_OTHERS)


class ShortLayer:
    """A layer that has a short way, forward and back.

    Attributes:
        forward: its forward passes.
        backward: their derivative.
        forms: of calls without a start, and with one.
    """

    def __init__(self, prepared: ShortForward) -> None:
        self.forward, self.backward = prepared, Derivative(prepared)
        sizes = prepared.H, prepared.D, int(prepared.bias)
        results = 1 + len(prepared.widths)
        self.forms = tuple(Form(*sizes, state, 0, 0, 0, results) for state in (0, 1))


def scan_short(
    layer: ShortLayer, x: Tensor, weights: Sequence[Tensor | None], state: Sequence[Tensor],
    start: Sequence[int],
) -> Sequence[Tensor] | None:  # fmt: skip
    """A call that is recorded: the outputs (T, B, D W) and the final states (D, B, width).

    Args:
        layer: prepared.
        x: (T, B, I), neither T nor B zero.
        weights: of all directions.
        state: where it starts, looked at; none for zeros.
        start: its addresses, or zeros.

    Returns:
        None where the call goes the long way.
    """
    way = layer.forward.way(x, True)
    read = None if way is None else layer.forward.read(x, weights)
    if way is None or read is None:
        return None
    found: Sequence[Tensor] = _apply(layer, way, (read, start), x, *_OTHERS, *weights, *state)
    return found


class Short(torch.autograd.Function):
    """The value and the gradient of one layer's plain call."""

    @staticmethod
    def forward(ctx: Any, layer: ShortLayer, way: Way, places: Any, *tensors: Any) -> Any:
        x, (read, start) = tensors[0], places
        saved = lend(x, way.saved)
        final = [x.new_empty(shape) for shape in way.states]
        y = layer.forward.run(way, x, read, start, [v.data_ptr() for v in final], saved)
        ctx.layer, ctx.way, ctx.backend, ctx.cell = layer, way, "cpu", layer.forward.cell
        ctx.form = layer.forms[start[0] != 0]
        ctx.save_for_backward(*tensors, kept_output(y), saved)
        ctx.set_materialize_grads(False)
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, *d_given: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[3:]
        d_results, plain = plain_gradients(d_given)
        *tensors, y, saved = recall(ctx, len(needs))
        # A derivative of this derivative may be asked for, or many at once, or their shapes alone.
        if torch.is_grad_enabled() or not plain or is_watched():
            given = (ctx.cell.key, "cpu", ctx.form, needs, 2)
            d_results = [_apart(ctx, d_results[0]), *d_results[1:]]
            some = iter(derivative(given, (*tensors, _apart(ctx, y), saved, *d_results)))
            return (None, None, None, *(next(some) if need else None for need in needs))
        first = _BEHIND + len(ctx.layer.forward.parameters)
        wants = Wants(needs[0], True in needs[_BEHIND:first], True in needs[first:])
        inputs, kept = (tensors[0], *tensors[_BEHIND:]), (y.view(ctx.way.y), saved)
        found = ctx.layer.backward.run(ctx.way, inputs, kept, d_results, wants)
        if found is not None:
            return (None, None, None, found[0], *_OTHERS, *found[1:])
        flat = _long(ctx, tensors, y, saved, d_results, needs)
        return (None, None, None, *(d if n else None for d, n in zip(flat, needs, strict=True)))


# Without the look for dead wrappers of torch.func, which have no address and so came not here.
_apply: Any = super(torch.autograd.Function, Short).apply


def _long(
    ctx: Any, tensors: Sequence[Any], y: Tensor, saved: Tensor, d_results: Sequence[Any],
    needs: Sequence[bool],
) -> Sequence[Tensor | None]:  # fmt: skip
    """Gradients where a tensor needs a closer look."""
    call = unflatten(ctx.cell, ctx.form, tensors)
    kept, d_y = [_apart(ctx, y), saved], _apart(ctx, d_results[0])
    given = [d_y, *d_results[1:]]
    found = OPAQUE[ctx.backend].backward(call, kept, given, needs[0], any(needs[1:]))
    return flatten_gradients(call, found)


def _apart(ctx: Any, v: Tensor | None) -> Any:
    """(T, B, D W) as (T, B, D, W), as the long way has outputs."""
    return None if v is None else v.view(*v.shape[:2], ctx.layer.forward.D, -1)
