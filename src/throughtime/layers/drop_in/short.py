"""The short way of a drop-in: plain calls of small work, all layers, without what they do not use.

A call that it does not know, for a kind of tensor, a mode of torch or a shape, goes the long way
(base.py), with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from throughtime.backends.cpu.look import take_whole
from throughtime.backends.cpu.short import prepare
from throughtime.cells import Cell
from throughtime.layers.layer import Passage
from throughtime.scan.plain import is_watched
from throughtime.scan.short import ShortLayer, scan_short
from throughtime.torch_private import any_autocast, dual_level

if TYPE_CHECKING:
    from throughtime.layers.drop_in.base import DropIn

BACKENDS = ("auto", "cpu")
"""Whose layers have a short way."""

_OWN = ("carry", "_carry_layer", "_scan", "_call", "weights", "plain_parameters")
"""Methods that the short way passes by, so a class that has its own of them goes the long way."""

_is_compiling = torch.compiler.is_compiling  # bound once: these are asked at every call
_records = torch.is_grad_enabled

Weights = Sequence[Tensor | None]


class ShortStack(NamedTuple):
    """The layers of one dtype.

    Attributes:
        cell, sizes: whose equations they carry, and H of each.
        layers: each layer,
        names: and of each the weights of all directions.
        zeros: what stands for the addresses of states that are zero, for each layer.
    """

    cell: Cell
    sizes: tuple[int, ...]
    layers: tuple[ShortLayer, ...]
    names: tuple[tuple[str, ...], ...]
    zeros: tuple[tuple[int, ...], ...]


class ShortWay:
    """What a layer keeps prepared for plain calls; a copy of the layer prepares its own."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[type, torch.dtype], ShortStack | None] = {}

    def __reduce__(self) -> Any:
        return ShortWay, ()

    def run(self, layer: DropIn, input: Any, hx: Any) -> Any:
        """What the call of the layer gives; None: it goes the long way."""
        if type(input) is not Tensor or input.dim() != 3 or _is_looked_on():
            return None
        x = input.transpose(0, 1) if layer.batch_first else input
        T, B, I = x.shape
        if I != layer.input_size or not T or not B:
            return None
        if T == 1 and layer.backend == "auto":
            return None
        stack = self._stack(layer, x.dtype)
        if stack is None:
            return None
        state: Sequence[Tensor] = ()
        start: Sequence[Sequence[int]] = stack.zeros
        if hx is not None:
            state = hx if layer.mode == "LSTM" else (hx,)
            start = _start(layer, stack, state, x)
            if not start:
                return None
        known = layer._parameters
        weights = [[known.get(name) for name in names] for names in stack.names]
        learns = _records() and _learns(x, weights, state)
        if learns is None:
            return None
        found = (_recorded if learns else _carried)(stack, x, weights, state, start)
        if found is None:
            return None
        y, final = found
        y = y.transpose(0, 1) if layer.batch_first else y
        return y, (tuple(final) if layer.mode == "LSTM" else final[0])

    def _stack(self, layer: DropIn, dtype: torch.dtype) -> ShortStack | None:
        kind = type(layer), dtype
        try:
            found = self._stacks[kind]
        except KeyError:
            found = self._stacks[kind] = _stack_of(layer, dtype)
        if found is None or found.cell is not layer.cell or found.sizes is not layer.hidden_sizes:
            return None
        if len(found.layers) > 1 and layer.training and layer.options.dropout:
            return None
        return found


def _is_looked_on() -> bool:
    """Whether a compiler, a mode, autocast or forward differentiation has a say in the call."""
    return _is_compiling() or is_watched() or any_autocast() or dual_level() >= 0


def _stack_of(layer: DropIn, dtype: torch.dtype) -> ShortStack | None:
    kind: Any = type(layer)
    asks = kind.__getattr__ is not nn.Module.__getattr__  # a class of the user's own reads weights
    if asks or any(getattr(kind, name) is not getattr(Passage, name) for name in _OWN):
        return None
    layers, width = [], layer.input_size
    for H in layer.hidden_sizes:
        prepared = prepare(layer.cell, width, H, layer.directions, layer.bias, dtype)
        if prepared is None:
            return None
        layers.append(ShortLayer(prepared))
        width = layer.directions * prepared.widths[0]
    names = [
        tuple(name for d in range(layer.directions) for name in layer.weight_names(i, d).values())
        for i in range(len(layers))
    ]
    zeros = ((0,) * len(layer.widths[0]),) * len(layers)
    return ShortStack(layer.cell, layer.hidden_sizes, tuple(layers), tuple(names), zeros)


def _start(
    layer: DropIn, stack: ShortStack, state: Sequence[Tensor], x: Tensor
) -> list[Sequence[int]]:
    """For each layer the addresses of its states; empty where one needs a closer look."""
    widths, count, B = layer.widths[0], len(stack.layers), x.shape[1]
    if len(state) != len(widths):
        return []
    D, places = layer.directions, []
    for v, width in zip(state, widths, strict=True):
        at = take_whole(v, (count * D, B, width), x.dtype) if type(v) is Tensor else 0
        if not at:
            return []
        plane = D * B * width * x.element_size()
        places.append([at + i * plane for i in range(count)])
    return list(zip(*places, strict=True))


def _learns(x: Tensor, weights: Sequence[Weights], state: Sequence[Tensor]) -> bool | None:
    """Whether autograd records what is done with one of these; None: a weight tells it its way."""
    learns = x.requires_grad
    for some in weights:
        for v in some:
            if v is not None and type(v) is not Parameter and type(v) is not Tensor:
                return None
            learns = learns or (v is not None and v.requires_grad)
    return learns or any(v.requires_grad for v in state)


def _carried(
    stack: ShortStack, x: Tensor, weights: Sequence[Weights], state: Sequence[Tensor],
    start: Sequence[Sequence[int]],
) -> tuple[Tensor, Sequence[Tensor]] | None:  # fmt: skip
    """Outputs, and the final states of all layers, of a call that is not recorded."""
    final: list[Tensor] = []
    for i, one in enumerate(stack.layers):
        layer = one.forward
        way, read = layer.way(x, False), layer.read(x, weights[i])
        if way is None or read is None:
            return None
        if not final:
            count = len(stack.layers)
            final = [x.new_empty((count * D, B, width)) for D, B, width in way.states]
            places = [v.data_ptr() for v in final]
        else:
            planes = zip(places, way.planes, strict=True)
            places = [at + layer.D * plane for at, plane in planes]
        x = layer.run(way, x, read, start[i], places)
    return x, final


def _recorded(
    stack: ShortStack, x: Tensor, weights: Sequence[Weights], state: Sequence[Tensor],
    start: Sequence[Sequence[int]],
) -> tuple[Tensor, Sequence[Tensor]] | None:  # fmt: skip
    """The same of one that is."""
    count = len(stack.layers)
    finals: list[Sequence[Tensor]] = []
    for i, (layer, own) in enumerate(zip(stack.layers, weights, strict=True)):
        D = layer.forward.D
        part = state if count == 1 else [v[i * D : (i + 1) * D] for v in state]
        found = scan_short(layer, x, own, part, start[i])
        if found is None:
            return None
        x, *final = found
        finals.append(final)
    return x, finals[0] if count == 1 else [torch.cat(v) for v in zip(*finals, strict=True)]
