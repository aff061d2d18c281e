"""The derivative of plain calls of one layer, each shape prepared when it first comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from throughtime.backends.cpu.backward_pass import Asked, template_for
from throughtime.backends.cpu.gradients import shapes_for
from throughtime.backends.cpu.look import seen, seen_lines, take_lines, take_plain, take_whole
from throughtime.backends.cpu.operands import plan_of
from throughtime.backends.cpu.schedule import flops_of, strides_of, team_for
from throughtime.backends.cpu.short.layer import ShortForward, Way
from throughtime.backends.cpu.short.region import Shapes, ShortRegion


class Wants(NamedTuple):
    """Which gradients a backward pass gives."""

    x: bool
    weights: bool
    state: bool


class Back(NamedTuple):
    """What a backward pass of one shape needs beside its tensors.

    Attributes:
        region: takes x, y, the weights, start, what is saved and the gradients by y and by the
            final states; then where those by x, by the weights and by the start go, if wanted.
        nothing: the address of a gradient by y that is zero.
    """

    region: ShortRegion
    nothing: int


class Derivative:
    """Backward passes of a layer.

    Args:
        layer: prepared for forward ones.
    """

    def __init__(self, layer: ShortForward) -> None:
        self._layer = layer
        self._backs = Shapes[Back]()
        shapes = shapes_for(layer.cell, layer.I, layer.H, layer.dtype.itemsize)
        self._line = shapes.inputs
        self._nothing = (None,) * len(layer.parameters)
        rooms = dict(zip(shapes.matrices, (shapes.W, *shapes.U), strict=True))
        # Of each weight: the shape that is written, and how long a line is where it is shorter.
        self._rooms = [
            (room, 0 if room == p.shape else p.shape[-1])
            for p in layer.parameters
            for room in [rooms.get(p.name, tuple(p.shape))]
        ]

    def run(
        self, way: Way, tensors: Sequence[Tensor], kept: Sequence[Tensor],
        d_results: Sequence[Tensor | None], wants: Wants,
    ) -> list[Tensor | None] | None:  # fmt: skip
        """Gradients by x, the weights and the start, None for what is not wanted.

        Args:
            way: of the forward pass.
            tensors: x, the weights of all directions, and the start of each state or nothing.
            kept: y, and what the forward pass saved.
            d_results: by y (T, B, D W) and by the final states; None is zero.
            wants: which gradients.

        Returns:
            Or None, where a tensor needs a closer look.
        """
        layer, dtype, count = self._layer, self._layer.dtype, 1 + len(self._layer.parameters)
        x, weights, start = tensors[0], tensors[1:count], tensors[count:]
        d_y, *d_final = d_results
        if d_y is not None:  # autograd has seen to its shape
            d_y = seen_lines("a gradient", d_y, None, dtype)
        back = self._back(x, d_y, wants)
        places = self._places(way, x, weights, start, kept)
        if back is None or places is None:
            return None
        places.append(back.nothing if d_y is None else d_y.data_ptr())
        d_final = [v if v is None else seen("a gradient", v, None, dtype) for v in d_final]
        ends = [0 if v is None else v.data_ptr() for v in d_final]
        places += layer.each(ends, way.planes)
        d_x, by_weights, d_start = self._write(back, way, x, places, wants)
        others: list[Tensor | None] = [*by_weights, *d_start]
        if not by_weights:
            others = [*self._nothing, *others]
        return [d_x, *others, *(() if d_start else (None,) * len(start))]

    def _places(
        self, way: Way, x: Tensor, weights: Sequence[Tensor], start: Sequence[Tensor],
        kept: Sequence[Tensor],
    ) -> list[int] | None:  # fmt: skip
        """Addresses of what the region reads, but for gradients."""
        layer, dtype, (y, saved) = self._layer, self._layer.dtype, kept
        at, found = take_lines(x, dtype), take_plain(weights, layer.wanted, dtype)
        own, rows = take_whole(y, way.y, dtype), take_whole(saved, way.saved, dtype)
        first = [take_whole(v, s, dtype) for v, s in zip(start, way.states, strict=False)]
        kept_there = rows or 0 in way.saved  # some cells save nothing but their outputs
        whole = x.shape[:2] == way.y[:2] and kept_there and all((at, own, *first))
        if found is None or not whole:
            return None
        places = [at, own, *found, *layer.each(first or way.zeros, way.planes)]
        places += layer.each((rows,), (saved.stride(0) * dtype.itemsize,))
        return places

    def _write(
        self, back: Back, way: Way, x: Tensor, places: list[int], wants: Wants
    ) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
        """Run the region with room for what is wanted."""
        layer, new = self._layer, x.new_empty
        d_x = new((layer.D, x.shape[0] * x.shape[1], self._line)) if wants.x else None
        rooms = [new(room) for room, _ in self._rooms] if wants.weights else []
        start = [new(shape) for shape in way.states] if wants.state else []
        if d_x is not None:
            places += layer.each((d_x.data_ptr(),), (d_x.stride(0) * d_x.element_size(),))
        places += [v.data_ptr() for v in rooms]
        places += layer.each([v.data_ptr() for v in start], way.planes if start else ())
        back.region.run(places)
        if d_x is not None:
            total = d_x[0] if layer.D == 1 else d_x[0] + d_x[1]
            lines = total if self._line == layer.I else total[:, : layer.I].contiguous()
            d_x = lines.view(x.shape)
        weights = [
            v[:, :cut].contiguous() if cut else v
            for v, (_, cut) in zip(rooms, self._rooms, strict=False)
        ]
        return d_x, weights, start

    def _back(self, x: Tensor, d_y: Tensor | None, wants: Wants) -> Back | None:
        """Of a call's shape; None: it goes the long way."""
        T, B, _ = x.shape
        step, row, _ = x.stride()
        strides = (0, 0) if d_y is None else d_y.stride()[:2]
        key = T, B, step, row, *strides, d_y is None, *wants
        try:
            return self._backs.known[key]
        except KeyError:
            return self._backs.add(key, lambda: self._prepare(x, d_y, wants))

    def _prepare(self, x: Tensor, d_y: Tensor | None, wants: Wants) -> Back:
        layer, (T, B, _), bytes = self._layer, x.shape, x.element_size()
        call = layer.call(x)
        team = team_for(2 * flops_of(plan_of(call), call, T * B), layer.D, B)
        strides = (0, 0) if d_y is None else strides_of(d_y, False)
        first = 0 if d_y is None else layer.widths[0] * bytes
        asked = Asked(strides, first, wants.x, wants.weights, False)
        template, shape = template_for(layer.key(x, team), asked)
        D, states = range(layer.D), range(len(layer.widths))
        read, start = ["x", "y", *(p.word for p in layer.parameters)], _each("start", D, states)
        read += [*start, *(f"saved {d}" for d in D), "d_y", *_each("d_final", D, states)]
        read += [f"d_x {d}" for d in D if wants.x]
        read += [_gradient(p.word) for p in layer.parameters if wants.weights]
        written = _each("d_start", D, states)
        planes = [B * w * bytes for w in layer.widths for _ in D]
        aside = {} if wants.state else dict(zip(written, planes, strict=True))
        names = [*read, *(written if wants.state else ())]
        region = ShortRegion(template, shape.code.region, team.release_gil, names, aside)
        return Back(region, template.word("zeros"))


def _each(word: str, D: range, states: range) -> list[str]:
    """The words of each direction of each state."""
    return [f"{word}{s} {d}" for s in states for d in D]


def _gradient(word: str) -> str:
    """Where the gradient by a weight goes."""
    return word.replace("weight_ih", "d_W") if word.startswith("weight_ih") else f"d_{word}"
