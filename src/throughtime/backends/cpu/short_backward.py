"""The derivative of plain calls of one layer, each kind of backward pass prepared when it comes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from torch import Tensor

from throughtime.backends.cpu.backward_pass import Asked, template_for
from throughtime.backends.cpu.gradients import cut_lines, shapes_for
from throughtime.backends.cpu.look import all_within, find_extent, guard_all, take_lines, take_whole
from throughtime.backends.cpu.memory import LEAST_BYTES, lend
from throughtime.backends.cpu.schedule import backward_team, plan_of
from throughtime.backends.cpu.short import Place, ShortRegion, Way
from throughtime.compiler.runtime.threads import available
from throughtime.torch_private import Guard

MOST_KINDS: Final = 4
"""Backward passes of a shape that are prepared: of other gradients wanted, or given otherwise."""


class Back(NamedTuple):
    """A backward pass of one shape and of one set of gradients.

    Attributes:
        check: whether the tensors that are read are like those it was prepared for.
        others: the number of the first tensor after x and the weights.
        extents: numbers from the first to the last of x, and of each of the others.
        region: takes those tensors, then the rooms.
        rooms: shape of each gradient that is written; the first is that by x, if it is wanted.
        width: numbers of x, where its gradient's lines are written longer; else 0.
        large: whether its memory is worth keeping.
        order: for each input the number of its room; -1: it has no gradient.
        shared: by how many threads, all that there are; 0 of work too small to be shared.
    """

    check: Guard
    others: int
    extents: list[int]
    region: ShortRegion
    rooms: tuple[tuple[int, ...], ...]
    width: int
    large: bool
    order: tuple[int, ...]
    shared: int

    def new_rooms(self, x: Tensor) -> list[Any]:
        """Memory for what is written, of the kind of x."""
        rooms = [x.new_empty(*shape) for shape in self.rooms]  # a tuple is read more slowly
        if self.large:
            rooms[0] = lend(x, self.rooms[0])
        return rooms


class Derivative:
    """Backward passes of one shape.

    Args:
        way: of its forward passes.
    """

    def __init__(self, way: Way) -> None:
        self._way, layer = way, way.layer
        self._backs: dict[tuple[object, ...], Back] = {}
        # The gradient by x is written as x lies, or in time-major lines of each direction.
        line = shapes_for(layer.cell, layer.I, layer.H, layer.bytes).inputs
        self._as_given = layer.D == 1 and line == layer.I and not way.layout.turned
        self._room_x = layer.D, way.layout.lines, line
        self._width = 0 if self._as_given or line == layer.I else layer.I
        # What is cut is given back at once, so a large room of it is worth keeping.
        self._large = math.prod(self._room_x[:-1]) * self._width >= LEAST_BYTES / layer.bytes

    def run(
        self, saved: Sequence[Tensor], d_results: Sequence[Tensor | None], needs: tuple[bool, ...]
    ) -> list[Tensor | None] | None:
        """Gradients by x, the weights and the start, None for what is not wanted.

        Args:
            saved: x, the weights of all directions, the start of each state or nothing, y, and
                what the forward pass kept.
            d_results: by y and by the final states; None is zero.
            needs: which of x, the weights and the start want one.

        Returns:
            Or None, where a tensor needs a closer look.
        """
        d_y, *d_final = d_results
        tensors = list(saved)
        if d_y is not None:
            d_y = d_y if d_y.stride(-1) == 1 else d_y.contiguous()
            tensors.append(d_y)
        key = _key((d_y, *d_final), needs)
        tensors += [v.contiguous() for v in d_final if v is not None]
        back = self._backs.get(key)
        if (
            back is None
            or not back.check(*tensors)
            or not all_within([tensors[0], *tensors[back.others :]], back.extents)
            or (back.shared and back.shared != available())
        ):
            if not self._sees(tensors, needs):
                return None
            back = self._prepare(key, tensors, d_results, needs)
        rooms = back.new_rooms(saved[0])
        back.region.run(tensors + rooms)
        if back.width:
            rooms[0] = cut_lines(rooms[0], back.width)
        rooms.append(None)
        grads = [rooms[i] for i in back.order]
        if not self._as_given and grads[0] is not None:
            grads[0] = self._by_x(grads[0], saved[0])
        return grads

    def prepared(self, d_results: Sequence[Tensor | None], needs: tuple[bool, ...]) -> Back | None:
        """What `run` prepared for gradients like these, whose numbers lie side by side."""
        return self._backs.get(_key(d_results, needs))

    def _by_x(self, lines: Tensor, x: Tensor) -> Tensor:
        """Lines (D, T B, I) in the shape of x."""
        total = lines[0] if self._way.layer.D == 1 else lines[0] + lines[1]
        return self._way.layout.as_given(total, x)

    def _sees(self, tensors: Sequence[Tensor], needs: tuple[bool, ...]) -> bool:
        """Whether the region may read these, looked at one by one."""
        way, dtype = self._way, self._way.layer.dtype
        count, first = 1 + len(way.layer.parameters), len(needs)
        y, kept, *gradients = tensors[first:]
        own = take_whole(y, way.y, dtype) and (
            take_whole(kept, way.saved, dtype) or (kept.shape == way.saved and 0 in way.saved)
        )
        seen = way.sees(tensors[0], tensors[1:count], tensors[count:first])
        return bool(own and seen and all(take_lines(v, dtype) for v in gradients))

    def _prepare(
        self, key: tuple[object, ...], tensors: Sequence[Tensor],
        d_results: Sequence[Tensor | None], needs: tuple[bool, ...],
    ) -> Back:  # fmt: skip
        """For tensors that were looked at."""
        layer, layout = self._way.layer, self._way.layout
        count = 1 + len(layer.parameters)
        call = layer.call(layout, tensors[0])
        team = backward_team(plan_of(call), call, layout.lines, layout.B)
        d_y = None if d_results[0] is None else tensors[len(needs) + 2]
        strides = (0, 0) if d_y is None else layout.strides(d_y)
        first = 0 if d_y is None else layer.widths[0] * layer.bytes
        wanted = needs[0], any(needs[1:count]), any(needs[count:])
        asked = Asked(strides, first, *wanted, adds=False)
        template, shape = template_for(layer.key(layout, tensors[0], team), asked)
        rooms, written, order = self._written(tensors, needs)
        places = [*self._read(len(needs) > count, d_results), *written]
        region = ShortRegion(template, shape.code.region, team, places, 1, layer.names)
        region.fix_all(layer.ragged_words(layout, tensors[0], shape, d_y=strides[1]))
        if d_y is None:
            region.fix("d_y", template.word("zeros"))
        extents = [find_extent(v) for v in (tensors[0], *tensors[count:])]
        for old in list(self._backs)[: max(0, 1 + len(self._backs) - MOST_KINDS)]:
            self._backs.pop(old, None)
        cuts = (self._width, self._large) if needs[0] else (0, False)
        shared = team.threads * team.is_shared
        self._backs[key] = Back(
            guard_all(tensors), count, extents, region, tuple(rooms), *cuts, order, shared
        )
        return self._backs[key]

    def _written(
        self, tensors: Sequence[Tensor], needs: tuple[bool, ...]
    ) -> tuple[list[tuple[int, ...]], list[Place], tuple[int, ...]]:
        """Rooms, places in them, and for each input the number of its room."""
        layer, layout, first = self._way.layer, self._way.layout, len(tensors)
        rooms: list[tuple[int, ...]] = []
        places: list[Place] = []
        order = [-1] * len(needs)
        if needs[0]:
            plane = math.prod(self._room_x[1:]) * layer.bytes
            places += [(f"d_x {d}", first, d * plane) for d in range(layer.D)]
            order[0] = 0
            rooms.append(tuple(tensors[0].shape) if self._as_given else self._room_x)
        states = 1 + len(layer.parameters)
        for i, p in enumerate(layer.parameters if any(needs[1:states]) else ()):
            order[1 + i] = len(rooms)
            word = p.word.replace("weight_ih", "W") if p.word.startswith("weight_ih") else p.word
            places.append((f"d_{word}", first + len(rooms), 0))
            rooms.append(tuple(p.shape))
        for s, plane in enumerate(layer.planes(layout.B) if any(needs[states:]) else ()):
            order[states + s] = len(rooms)
            places += [(f"d_start{s} {d}", first + len(rooms), d * plane) for d in range(layer.D)]
            rooms.append(layout.state(layer.D, layer.widths[s]))
        return rooms, places, tuple(order)

    def _read(self, given: bool, d_results: Sequence[Tensor | None]) -> list[Place]:
        """Places of what is read; `given`: states to start from are."""
        layer, layout = self._way.layer, self._way.layout
        planes, each = layer.planes(layout.B), range(layer.D)
        places: list[Place] = [("x", 0, 0)]
        places += [(p.word, 1 + i, 0) for i, p in enumerate(layer.parameters)]
        at = 1 + len(layer.parameters)
        for s, plane in enumerate(planes if given else ()):
            places += [(f"start{s} {d}", at + s, d * plane) for d in each]
        at += len(planes) if given else 0
        places.append(("y", at, 0))
        lines, values, units = self._way.saved[1:]
        places += [(f"saved {d}", at + 1, d * lines * values * units * layer.bytes) for d in each]
        words = [["d_y"], *([f"d_final{s} {d}" for d in each] for s in range(len(planes)))]
        if layout.single:  # the first state is y
            del words[1]
        at += 2
        for i, (some, v) in enumerate(zip(words, d_results, strict=True)):
            if v is not None:
                plane = planes[i - 1 + layout.single] if i else 0
                places += [(word, at, d * plane) for d, word in enumerate(some)]
                at += 1
        return places


def _key(d_results: Sequence[Tensor | None], needs: tuple[bool, ...]) -> tuple[object, ...]:
    d_y = d_results[0]
    return (None if d_y is None else d_y.stride(), needs, *[v is None for v in d_results])
