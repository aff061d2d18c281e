"""Plain calls of a prepared layer by Python: `scan` without what such calls do not use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from throughtime.backends import OPAQUE
from throughtime.backends.call import Call, is_watched, plain_gradients
from throughtime.backends.cpu.look import all_within
from throughtime.backends.cpu.memory import lend
from throughtime.backends.cpu.short import Way
from throughtime.backends.cpu.short_backward import Derivative
from throughtime.scan import scan
from throughtime.scan.autograd import compute_again, derivative, keep_output, placed, recall
from throughtime.scan.kernels import Carry
from throughtime.scan.operator import Form, flatten_gradients, unflatten

_records = torch.is_grad_enabled  # bound once: it is asked at every call
_OTHERS = 5
"""Tensors of a call, after x as `flatten` orders them; of these it may have batch sizes alone."""


class Recorded:
    """A layer's plain calls of one shape, forward and back.

    Attributes:
        record: gives the outputs and the final states, of one step without the first, for x as it
            is given, the weights of all directions and where it starts, all of them looked at.

    Args:
        way: of the forward pass.
    """

    def __init__(self, way: Way) -> None:
        self.way, self.backward = way, Derivative(way)
        self.programs: list[Any] = []  # of backward passes, for kernels
        layer = way.layer
        self.cell, self.key = layer.cell, layer.cell.key
        sizes = layer.H, layer.D, int(layer.bias)
        count = 1 + len(layer.widths)
        ragged = way.layout.sizes is not None
        self._lead = way.layout.lead if ragged else (way.layout.T, way.layout.B)
        self._forms = tuple(Form(*sizes, state, 0, 0, 0, count) for state in (0, 1))
        self.record: Any = partial(_record, self)

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
        states = [None if v is None else v.reshape(s) for v, s in zip(finals, shapes, strict=False)]
        return [None if y is None else y.reshape(*self._lead, layer.D, -1), *states]

    def short(self, gradients: list[Tensor | None], tensors: Sequence[Tensor]) -> list[Any]:
        """Gradients of the long way's tensors as those of these."""
        d_x, *others = gradients[:1] + gradients[1 + _OTHERS :]
        d_x = None if d_x is None else self.way.layout.as_given(d_x, tensors[0])
        pairs = zip(others, tensors[1:], strict=True)
        return [d_x, *(None if d is None else d.reshape(v.shape) for d, v in pairs)]

    def call(self, tensors: Sequence[Tensor]) -> Call:
        """The same call, as the long way has it."""
        return unflatten(self.cell, self.form(tensors), self.long(tensors))

    def short_finals(self, finals: Sequence[Tensor]) -> list[Tensor]:
        """Final states of the long way as those of this layer alone."""
        layout, layer = self.way.layout, self.way.layer
        shapes = [layout.state(layer.D, w) for w in layer.widths]
        return [v.reshape(s) for v, s in zip(finals, shapes, strict=True)]

    def output(self, tensors: Sequence[Tensor]) -> Tensor:
        """The outputs, computed once more."""
        return compute_again(self.call(tensors), "cpu").reshape(self.way.y)

    def back(
        self, saved: Sequence[Any], d_results: Sequence[Tensor | None], needs: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """Gradients by x, the weights and the start; arguments as `Derivative.run` has them."""
        # A derivative of this derivative may be asked for, or many at once, or their shapes alone.
        if not (_records() or is_watched()):
            grads = self.backward.run(saved, d_results, needs)
            if grads is not None:
                return grads
        return _long(self, saved, d_results, needs)


class Short(torch.autograd.Function):
    """The value and the gradient of one layer's plain call."""

    @staticmethod
    def forward(ctx: Any, call: Recorded, x: Tensor, *tensors: Tensor) -> Any:
        way, new = call.way, x.new_empty
        y, saved = new(*way.y), _room(way, x)
        final = [new(*shape) for shape in way.finals]
        way.region.run((x, y, *tensors, *final, saved))
        ctx.call = call
        ctx.save_for_backward(x, *tensors, keep_output(y), saved)
        ctx.set_materialize_grads(False)
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[1:]
        saved = recall(ctx, len(needs), lambda tensors: ctx.call.output(tensors[: len(needs)]))
        return (None, *ctx.call.back(saved, d_results, needs))


# `apply` would look for dead wrappers of torch.func too, which have no address, so none comes here.
_record: Any = super(torch.autograd.Function, Short).apply


def _room(way: Way, x: Tensor) -> Tensor:
    """For what a forward pass keeps."""
    return x.new_empty(*way.saved) if way.small else lend(x, way.saved)


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
        some = derivative((call.key, "cpu", form, wants, 2), (*long, *values, *given))
        grads = placed(some, wants)
    else:
        whole = unflatten(call.cell, form, long)
        gradients = OPAQUE["cpu"].backward(whole, values, given, wants[0], any(wants[1:]))
        flat = flatten_gradients(whole, gradients)
        grads = [d if need else None for d, need in zip(flat, wants, strict=True)]
    return call.short(grads, tensors)


Part = tuple[slice, slice]
"""Where a layer's weights, and its own states, are among the tensors of a stack."""


class RecordedStack:
    """Plain calls of layers that read each other: one node of autograd's for all of them.

    Attributes:
        layers: each alone.
        record: takes and gives what that of a layer does, of all layers.

    Args:
        ways: of the forward pass of each layer.
        parts: of each layer.
        finals: shapes of final states that layers share, each with lines of its own there; empty
            where each layer has its own, and its own to start from.
    """

    def __init__(
        self, ways: Sequence[Way], parts: Sequence[Part], finals: tuple[tuple[int, ...], ...]
    ) -> None:
        self.layers, self._finals = tuple(map(Recorded, ways)), finals
        self._parts = [(_behind_x(weights), _behind_x(states)) for weights, states in parts]
        self._start = self._parts[-1][0].stop
        self._asked: dict[tuple[bool, ...], list[tuple[int, tuple[bool, ...]]]] = {}
        self.record: Any = partial(_record_stack, self)

    def forward(self, given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Final states, and for each layer its outputs and what it keeps.

        Args:
            given: x, the weights and the start.
        """
        x, new, kept = given[0], given[0].new_empty, list[Tensor]()
        final = finals = [new(*shape) for shape in self._finals]
        for one, (weights, states) in zip(self.layers, self._parts, strict=True):
            way = one.way
            if not self._finals:
                final = [new(*shape) for shape in way.finals]
                finals = finals + final
            y, saved = new(*way.y), _room(way, x)
            way.region.run((x, y, *given[weights], *given[states], *final, saved))
            kept += [y, saved]
            x = y
        return finals, kept

    def back(
        self, given: Sequence[Tensor], kept: Sequence[Tensor], d_results: Sequence[Tensor | None],
        needs: tuple[bool, ...],
    ) -> list[Tensor | None]:  # fmt: skip
        """Gradients by what was given, layer by layer from the last.

        Args:
            given, kept: as `forward` has them.
            d_results, needs: as `Derivative.run` takes them.
        """
        d_y, *d_final = d_results
        grads: list[Tensor | None] = [None] * len(needs)
        starts: list[Sequence[Tensor | None]] = []
        for i, wants in self._wants(needs):
            weights, states = self._parts[i]
            saved = *self.reads(i, given, kept), *kept[2 * i : 2 * i + 2]
            d_y, *d = self.layers[i].back(saved, (d_y, *self._of(i, d_final)), wants)
            count = weights.stop - weights.start
            grads[weights], d_start = d[:count], d[count:]
            if self._finals:
                starts.insert(0, d_start)
            else:
                grads[states] = d_start
        grads[0] = d_y if needs[0] else None
        for s, parts in enumerate(zip(*starts, strict=True), self._start):
            grads[s] = torch.cat(parts) if needs[s] else None
        return grads

    def _wants(self, needs: tuple[bool, ...]) -> list[tuple[int, tuple[bool, ...]]]:
        """Which layers are asked, the last first, and for which gradients each."""
        wanted = self._asked.get(needs)
        if wanted is not None:
            return wanted
        wanted = []
        for i in range(len(self.layers) - 1, -1, -1):
            weights, states = self._parts[i]
            below = any(needs[: weights.start]) or (i > 0 and any(needs[self._start :]))
            wanted.append((i, (below, *needs[weights], *needs[states])))
            if not below:
                break
        self._asked = {needs: wanted}  # never changed in place: other threads may be reading it
        return wanted

    def back_again(
        self, given: Sequence[Tensor], d_results: Sequence[Tensor | None], needs: tuple[bool, ...]
    ) -> list[Tensor | None]:
        """The same, to be differentiated again: through layers that are recorded one by one.

        What lies between layers was kept without its history.
        """
        given = [v.view_as(v) for v in given]  # one of them may be made from another
        x, finals = given[0], list[list[Tensor]]()
        for i, one in enumerate(self.layers):
            inputs = (x, *self.reads(i, given, ())[1:])
            result = scan(one.call(inputs), "cpu")
            x = result.sequences[0].reshape(one.way.y)
            finals.append(one.short_finals(result.final))
        if self._finals:
            final = [torch.cat(v) for v in zip(*finals, strict=True)]
        else:
            final = [v for each in finals for v in each]
        pairs = zip((x, *final), d_results, strict=True)
        results, given_d = zip(*((v, d) for v, d in pairs if d is not None), strict=True)
        wanted = [v for v, need in zip(given, needs, strict=True) if need]
        some = torch.autograd.grad(results, wanted, given_d, create_graph=True, allow_unused=True)
        return placed(some, needs)

    def reads(self, i: int, given: Sequence[Any], kept: Sequence[Any]) -> list[Any]:
        """What the i-th layer is given."""
        weights, states = self._parts[i]
        x = kept[2 * i - 2] if i and kept else given[0]
        own = given[states]
        return [x, *given[weights], *(self._of(i, own) if self._finals else own)]

    def _of(self, i: int, states: Sequence[Any]) -> Sequence[Any]:
        """What the i-th layer has, of tensors of the states of all layers, some of them None."""
        layer = self.layers[i].way.layer
        if not self._finals:
            count = len(layer.widths)
            return states[i * count : (i + 1) * count]
        lines = slice(i * layer.D, (i + 1) * layer.D)
        return [None if v is None else v[lines] for v in states]


def _behind_x(part: slice) -> slice:
    return slice(1 + part.start, None if part.stop is None else 1 + part.stop)


class ShortStack(torch.autograd.Function):
    """The value and the gradient of one plain call of several layers."""

    @staticmethod
    def forward(ctx: Any, call: RecordedStack, *given: Tensor) -> Any:
        finals, kept = call.forward(given)
        y = kept[-2]
        ctx.call = call
        ctx.save_for_backward(*given, *kept[:-2], keep_output(y), kept[-1])
        ctx.set_materialize_grads(False)
        return (y, *finals)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> Any:
        call: RecordedStack = ctx.call
        needs, last = ctx.needs_input_grad[1:], len(call.layers) - 1
        count = len(needs)

        def output(others: Sequence[Any]) -> Tensor:
            return call.layers[last].output(call.reads(last, others[:count], others[count:]))

        saved = recall(ctx, count + 2 * last, output)
        given, kept = saved[:count], saved[count:]
        if _records():
            return (None, *call.back_again(given, d_results, needs))
        return (None, *call.back(given, kept, d_results, needs))


_record_stack: Any = super(torch.autograd.Function, ShortStack).apply


def look_first(
    extents: Sequence[int], carry: Carry, x: Tensor, *tensors: Tensor
) -> tuple[Tensor, ...] | None:
    """What Python carries, which believes that x and the states, which come last, are all there."""
    states = tensors[len(tensors) + 1 - len(extents) :]
    return carry(x, *tensors) if all_within((x, *states), extents) else None


def carry_regions(
    ways: Sequence[Way], parts: Sequence[Part], shapes: Sequence[tuple[int, ...]], x: Tensor,
    *tensors: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Outputs and final states of a call that is not recorded."""
    final = finals = [x.new_empty(*shape) for shape in shapes]
    for way, (weights, states) in zip(ways, parts, strict=True):
        if not shapes:
            final = [x.new_empty(*shape) for shape in way.finals]
            finals = finals + final
        y = x.new_empty(*way.y)
        way.region.run((x, y, *tensors[weights], *tensors[states], *final))
        x = y
    return (x, *finals)
