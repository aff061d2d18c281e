"""Plain calls of a prepared layer that are recorded: `scan` without what such calls do not use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.backends import OPAQUE
from throughtime.backends.cpu.memory import lend
from throughtime.backends.cpu.short import Derivative, Way
from throughtime.scan.autograd import derivative
from throughtime.scan.flatten import Form, flatten_gradients, unflatten
from throughtime.scan.outputs import compute_again, kept_output
from throughtime.scan.plain import is_watched, plain_gradients
from throughtime.torch_private import saved_but_one

_records = torch.is_grad_enabled  # bound once: it is asked at every call
_OTHERS = 5
"""Tensors of a call, after x as `flatten` orders them; of these it may have batch sizes alone."""


class Recorded:
    """A layer's plain calls of one shape, forward and back.

    Args:
        way: of the forward pass.
    """

    def __init__(self, way: Way) -> None:
        self.way, self.backward = way, Derivative(way)
        layer = way.layer
        self.cell, self.key = layer.cell, layer.cell.key
        sizes = layer.H, layer.D, int(layer.bias)
        count = 1 + len(layer.widths)
        ragged = way.layout.sizes is not None
        self._lead = way.layout.lead if ragged else (way.layout.T, way.layout.B)
        self._forms = tuple(Form(*sizes, state, 0, 0, 0, count) for state in (0, 1))

    def form(self, tensors: Sequence[Tensor]) -> Form:
        """Of a call with these tensors: x, weights, states."""
        return self._forms[len(tensors) > 1 + len(self.way.layer.parameters)]

    def long(self, tensors: Sequence[Tensor]) -> list[Any]:
        """x, weights and states as the long way has them, and as `flatten` orders them."""
        layout, layer = self.way.layout, self.way.layer
        first = 1 + len(layer.parameters)
        shapes = [(layer.D, layout.B, w) for w in layer.widths]
        states = [v.view(s) for v, s in zip(tensors[first:], shapes, strict=False)]
        others = None, None, layout.sizes, None, None
        return [layout.long(tensors[0]), *others, *tensors[1:first], *states]

    def long_results(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """y, or the gradient by it, and those by the final states in the same way."""
        layout, layer = self.way.layout, self.way.layer
        y, *finals = values
        if layout.single:
            finals = [None, *finals]
        shapes = [(layer.D, layout.B, w) for w in layer.widths]
        found = [None if v is None else v.reshape(s) for v, s in zip(finals, shapes, strict=False)]
        return [None if y is None else y.reshape(*self._lead, layer.D, -1), *found]

    def short(self, gradients: list[Tensor | None], tensors: Sequence[Tensor]) -> list[Any]:
        """Gradients of the long way's tensors as those of these."""
        d_x, *others = gradients[:1] + gradients[1 + _OTHERS :]
        d_x = None if d_x is None else self.way.layout.as_given(d_x, tensors[0])
        pairs = zip(others, tensors[1:], strict=True)
        return [d_x, *(None if d is None else d.reshape(v.shape) for d, v in pairs)]


class Short(torch.autograd.Function):
    """The value and the gradient of one layer's plain call."""

    @staticmethod
    def forward(ctx: Any, call: Recorded, x: Tensor, *tensors: Tensor) -> Any:
        way, new = call.way, x.new_empty
        y, saved = new(way.y), new(way.saved) if way.small else lend(x, way.saved)
        final = [new(shape) for shape in way.finals]
        way.region.run((x, y, *tensors, *final, saved))
        ctx.call = call
        ctx.save_for_backward(x, *tensors, kept_output(y), saved)
        ctx.set_materialize_grads(False)
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> Any:
        call, needs = ctx.call, ctx.needs_input_grad[1:]
        saved = _recall(ctx, call)
        # A derivative of this derivative may be asked for, or many at once, or their shapes alone.
        if not (_records() or is_watched()):
            found = call.backward.run(saved, d_results, needs)
            if found is not None:
                return (None, *found)
        return (None, *_long(call, saved, d_results, needs))


record: Any = super(torch.autograd.Function, Short).apply
"""A call that is recorded: the outputs and the final states, of one step without the first.

Its arguments are the `Recorded`, x as it is given, and the weights of all directions and where it
starts, all of them looked at. `Short.apply` would look for dead wrappers of torch.func too, which
have no address and so came not here.
"""


def _recall(ctx: Any, call: Recorded) -> tuple[Any, ...]:
    """What `Short` saved, its output computed once more where it was written over."""
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
    count = len(ctx.needs_input_grad) - 1
    tensors = saved_but_one(ctx, count)
    long = call.long(tensors[:count])
    y = compute_again(unflatten(call.cell, call.form(tensors[:count]), long), "cpu")
    return (*tensors[:count], y.reshape(call.way.y), *tensors[count:])


def _long(
    call: Recorded, saved: Sequence[Any], d_results: Sequence[Tensor | None],
    needs: tuple[bool, ...],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients where a tensor needs a closer look, or where they are differentiated again."""
    *tensors, y, kept = saved
    given, plain = plain_gradients(call.long_results(d_results))
    long, form = call.long(tensors), call.form(tensors)
    values = [call.long_results([y])[0], kept]
    wants = (needs[0], *(False,) * _OTHERS, *needs[1:])
    if torch.is_grad_enabled() or not plain or is_watched():
        some = iter(derivative((call.key, "cpu", form, wants, 2), (*long, *values, *given)))
        found = [next(some) if need else None for need in wants]
    else:
        whole = unflatten(call.cell, form, long)
        gradients = OPAQUE["cpu"].backward(whole, values, given, wants[0], any(wants[1:]))
        flat = flatten_gradients(whole, gradients)
        found = [d if need else None for d, need in zip(flat, wants, strict=True)]
    return call.short(found, tensors)
