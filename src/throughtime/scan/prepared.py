"""The short way of a layer: plain calls, without all that they do not use.

A call that it does not know, for a kind of tensor, a mode of torch or a shape, goes the long way
(layers/), with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import is_watched
from throughtime.backends.cpu.look import (
    can_read_weights,
    guard_all,
    take_lines,
    take_whole,
)
from throughtime.backends.cpu.short import BatchForm, ShortLayer, prepare
from throughtime.compiler.runtime.threads import available
from throughtime.scan.kernels import Carry
from throughtime.scan.node import carriers_of
from throughtime.torch_private import Guard, any_autocast, dual_level

BACKENDS = ("auto", "cpu")
"""Whose layers have a short way."""

MOST_SHAPES: Final = 512
"""Shapes that a layer keeps prepared."""

_is_compiling = torch.compiler.is_compiling  # bound once: these are asked at every call
_records = torch.is_grad_enabled

Steps = int | tuple[int, ...]
"""0 of a padded batch, of a packed one its steps, or the rows of each where lengths differ."""


class ShortCall(NamedTuple):
    """What is prepared for calls of one shape.

    Attributes:
        check: whether x, the weights and the states are like those it was prepared for.
        kind: what of the layer it follows from.
        weights: those of all layers, of a layer's parameters.
        carry: what carries it, and records it where a backward pass may follow.
        turned: whether outputs are given as (B, T, width).
        shared: by how many threads, all there are; 0 of work too small to be shared.
    """

    check: Guard
    kind: tuple[object, ...]
    weights: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    carry: Carry
    turned: bool
    shared: int


class ShortWay:
    """What a drop-in keeps prepared for plain calls; a copy of the layer prepares its own."""

    own_states = False
    """Whether each layer has tensors of states of its own, as `Recurrent` gives them."""

    def __init__(self) -> None:
        self.calls: dict[tuple[object, ...], ShortCall | None] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._layers: dict[tuple[object, ...], tuple[ShortLayer, ...] | None] = {}

    def __reduce__(self) -> Any:
        return type(self), ()

    def run(self, layer: Any, input: Any, state: Sequence[Tensor]) -> Any:
        """Outputs and final states of a call, one behind the other; None: it goes the long way."""
        if _is_compiling() or is_watched() or dual_level() >= 0:
            return None
        if type(input) is Tensor:
            return self._run(layer, input, state, 0)
        if type(input) is PackedSequence:
            return self._run_packed(layer, input, state)
        return None

    def _run_packed(self, layer: Any, input: PackedSequence, state: Sequence[Tensor]) -> Any:
        """Rows of one length lie as a padded batch does."""
        x, sizes = input.data, input.batch_sizes
        if type(x) is not Tensor or type(sizes) is not Tensor or x.dim() != 2:
            return None
        if sizes.dtype is not torch.int64 or sizes.dim() != 1 or not sizes.is_cpu:
            return None
        rows, order, back = sizes.tolist(), input.sorted_indices, input.unsorted_indices
        if not rows or sum(rows) != x.shape[0]:
            return None
        steps = len(rows) if rows.count(rows[0]) == len(rows) else tuple(rows)
        if order is not None and state:
            if any(type(v) is not Tensor for v in state):
                return None
            state = [v.index_select(1, order) for v in state]
        result = self._run(layer, x, state, steps)
        if result is None:
            return None
        y, *final = result
        if back is not None:
            final = [v.index_select(1, back) for v in final]
        return PackedSequence(y, sizes, order, back), *final

    def _run(self, layer: Any, x: Tensor, state: Sequence[Tensor], steps: Steps) -> Any:
        """The same, of a batch that lies as steps say."""
        records = _records()
        # A pair of the same zeros, as h and c, comes in turn with two that are not the same.
        twice = len(state) == 2 and state[0] is state[1]
        key = x.shape, x.stride(), records, len(state), twice, steps
        call = self.calls.get(key, _NEW)
        if call is None:
            return None
        result = None
        try:
            tensors = x, *call.weights(layer._parameters), *state
        except KeyError:  # a weight that is no parameter any more
            pass
        else:
            if (
                call.check(*tensors)
                and call.kind == self._kind(layer)
                and (not call.shared or call.shared == available())
            ):
                result = call.carry(*tensors)
        if result is None:
            call = self._prepare(layer, key, x, state, records, steps)
            if call is None:
                return None
            result = call.carry(x, *call.weights(layer._parameters), *state)
            if result is None:
                return None
        return (result[0].transpose(0, 1), *result[1:]) if call.turned else result

    def _prepare(
        self, layer: Any, key: tuple[object, ...], x: Tensor, state: Sequence[Any],
        records: bool, steps: Steps,
    ) -> ShortCall | None:  # fmt: skip
        """For tensors that are looked at one by one here; None where one is not plain."""
        kind, seen = self._kind(layer), self._look(layer, key, x, state, steps)
        if seen is None or kind[-1]:
            return None
        layout, layers, shapes, (names, weights, parts) = seen
        tensors = x, *weights, *state
        keep = records and any(v.requires_grad for v in tensors)
        finals = () if self.own_states else tuple(shapes[layout.single :])
        own = tuple(zip(parts, self._states(layers, len(names), state), strict=True))
        carriers = carriers_of(layers, layout, x, keep, state, own, finals, self.own_states)
        if carriers is None:
            self._add(key, None)
            return None
        ways, carry = carriers
        shared = max((way.shared for way in ways), default=0)
        read = itemgetter(*names) if len(names) > 1 else lambda known: (known[names[0]],)
        call = ShortCall(guard_all(tensors), kind, read, carry, layout.turned, shared)
        self._add(key, call)
        return call

    def _look(
        self, layer: Any, key: tuple[object, ...], x: Tensor, state: Sequence[Any], steps: Steps
    ) -> tuple[BatchForm, tuple[ShortLayer, ...], list[tuple[int, ...]], Weights] | None:
        """How the batch lies, the layers, shapes of states, and weights; None: not all is plain."""
        if not layer.is_plain or (isinstance(steps, tuple) and not self._comes_again(key)):
            return None
        layout = self._layout(layer, x, steps)
        layers = None if layout is None else self._layers_of(layer, x.dtype)
        if layout is None or layers is None or any_autocast():
            return None
        shapes, weights = self._state_shapes(layers, layout), _weights_of(layer, layers)
        if weights is None or not _are_whole(layers[0], shapes, x, state):
            return None
        return layout, layers, shapes, weights

    def _state_shapes(
        self, layers: Sequence[ShortLayer], layout: BatchForm
    ) -> list[tuple[int, ...]]:
        """The shape of each tensor of states."""
        if self.own_states:
            return [layout.state(one.D, w) for one in layers for w in one.widths]
        return [layout.state(len(layers) * layers[0].D, w) for w in layers[0].widths]

    def _states(
        self, layers: Sequence[ShortLayer], first: int, state: Sequence[Tensor]
    ) -> list[slice]:
        """Where the states of each layer are among the tensors, of which they come last."""
        if not self.own_states or not state:
            return [slice(first, None)] * len(layers)
        each = len(layers[0].widths)
        return [slice(i, i + each) for i in range(first, first + len(state), each)]

    def _comes_again(self, key: tuple[object, ...]) -> bool:
        """Whether lengths were there before: most batches have new ones, which pay for nothing."""
        if key in self._seen or key in self.calls:
            return True
        if len(self._seen) >= MOST_SHAPES:
            self._seen.clear()
        self._seen.add(key)
        return False

    def _add(self, key: tuple[object, ...], call: ShortCall | None) -> None:
        for old in list(self.calls)[: max(0, 1 + len(self.calls) - MOST_SHAPES)]:
            self.calls.pop(old, None)
        self.calls[key] = call

    def _kind(self, layer: Any) -> tuple[object, ...]:
        """What a call follows from besides tensors; the last says whether outputs are dropped."""
        options, sizes, first = layer.options, layer.hidden_sizes, layer.batch_first
        drops = bool(options.dropout and layer.training and len(sizes) > 1)
        return type(layer), layer.cell, sizes, layer.input_size, first, options, drops

    def _layout(self, layer: Any, x: Tensor, steps: Steps) -> BatchForm | None:
        """How the batch lies; None where it is none for the layer."""
        if x.shape[-1:] != (layer.input_size,) or not x.numel():
            return None
        lead = tuple(x.shape[:-1])
        if isinstance(steps, tuple):
            if list(steps) != sorted(steps, reverse=True) or steps[-1] < 1:
                return None
            rows, sizes = steps[0], torch.tensor(steps, device="cpu")
            return BatchForm(len(steps), rows, lead, (rows,), sizes=sizes)
        if steps:
            rows = lead[0] // steps
            return BatchForm(steps, rows, lead, (rows,))
        if len(lead) == 1:
            return BatchForm(lead[0], 1, lead, ())
        if len(lead) != 2:
            return None
        if layer.batch_first:
            return BatchForm(lead[1], lead[0], lead[::-1], lead[:1], turned=True)
        return BatchForm(*lead, lead, lead[1:])

    def _layers_of(self, layer: Any, dtype: torch.dtype) -> tuple[ShortLayer, ...] | None:
        kind = *self._kind(layer)[:4], dtype
        known = self._layers
        if kind in known:
            return known[kind]
        layers = _prepare_layers(layer, dtype)
        self._layers = {kind: layers}  # never changed in place: other threads may be reading it
        return layers


class ShortLayers(ShortWay):
    """What a `Recurrent` keeps prepared, whose layers have states of their own."""

    own_states = True


class ShortStep(ShortWay):
    """What a module of one step keeps prepared: its x is (B, I) or (I,), its states likewise."""

    def step(self, module: Any, x: Any, state: Any) -> tuple[Tensor, ...] | None:
        """The new states; None: the call goes the long way."""
        if type(x) is not Tensor or _is_compiling() or is_watched() or dual_level() >= 0:
            return None
        if state is not None and type(state) is not tuple and type(state) is not list:
            return None
        return self._run(module, x, state or (), 1)  # type: ignore[no-any-return]

    def _kind(self, layer: Any) -> tuple[object, ...]:
        sizes = layer.hidden_size, layer.input_size
        return type(layer), layer.cell, sizes, layer.backend, False

    def _layout(self, layer: Any, x: Tensor, steps: Steps) -> BatchForm | None:
        lead = tuple(x.shape[:-1])
        if x.shape[-1:] != (layer.input_size,) or not x.numel() or len(lead) > 1:
            return None
        return BatchForm(1, lead[0] if lead else 1, lead, lead, single=True)


_NEW = ShortCall(lambda *_: False, (), lambda _: (), lambda *_: None, False, 0)
"""Of a shape that has not come before."""


PASSED_BY: Final = (
    "carry", "carry_call", "_carry_layer", "_scan", "_call", "_step", "step_by_torch", "weights",
    "weight_names", "plain_parameters", "enter", "leave_state",
)  # fmt: skip
"""Methods that the short way does not call; those of them that a class has."""


def _has_own(kind: Any) -> bool:
    """Whether a class of the user's own carries calls or reads weights in a way of its own."""
    if kind.__getattr__ is not nn.Module.__getattr__:
        return True
    methods = (getattr(kind, name) for name in PASSED_BY if hasattr(kind, name))
    return any(not method.__module__.startswith("throughtime.") for method in methods)


def _prepare_layers(layer: Any, dtype: torch.dtype) -> tuple[ShortLayer, ...] | None:
    if _has_own(type(layer)):
        return None
    layers, width = [], layer.input_size
    for H in layer.hidden_sizes:
        prepared = prepare(layer.cell, width, H, layer.directions, layer.bias, dtype)
        if prepared is None:
            return None
        layers.append(prepared)
        width = layer.directions * prepared.widths[0]
    return tuple(layers)


Weights = tuple[tuple[str, ...], list[Tensor], list[slice]]
"""Names and weights of all layers, and which of them each has."""


def _weights_of(layer: Any, layers: Sequence[ShortLayer]) -> Weights | None:
    """Those of a layer's call; None: one is not plain."""
    names: list[str] = []
    weights: list[Tensor] = []
    parts = []
    for i, one in enumerate(layers):
        own = [n for d in range(one.D) for n in layer.weight_names(i, d).values()]
        some = [v for n in own if (v := layer._parameters.get(n)) is not None]
        if len(some) < len(own) or not can_read_weights(some, one.wanted, one.dtype):
            return None
        parts.append(slice(len(names), len(names) + len(own)))
        names += own
        weights += some
    return tuple(names), weights, parts


def _are_whole(
    layer: ShortLayer, shapes: Sequence[tuple[int, ...]], x: Tensor, state: Sequence[Any]
) -> bool:
    """Whether x and the states, all or none, may be read as they are."""
    if not take_lines(x, layer.dtype) or len(state) not in (0, len(shapes)):
        return False
    pairs = zip(state, shapes, strict=False)
    return all(isinstance(v, Tensor) and take_whole(v, s, x.dtype) for v, s in pairs)
