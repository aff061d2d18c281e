"""The short way: what plain calls of one layer have in common is prepared, shape by shape.

What is left to a call is to write addresses. Nothing here knows lengths of padded rows, resets,
masks, traces, norms, segments or queues. A call that has one of them, or a tensor that needs more
than one comparison, goes the long way (forward_pass.py), to the same code and the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.active_rows import rows_of
from throughtime.backends.cpu.block import Arena, CallBlock, Template
from throughtime.backends.cpu.forward_pass import kept_shape, template_for
from throughtime.backends.cpu.look import (
    FLOATS,
    can_read_weights,
    check_whole,
    parameters_of,
    take_lines,
    take_whole,
)
from throughtime.backends.cpu.memory import LEAST_BYTES, fresh, give_back, take
from throughtime.backends.cpu.operands import RaggedWords
from throughtime.backends.cpu.products import LEAST_NUMBERS, MOST_ROWS
from throughtime.backends.cpu.schedule import (
    Team,
    backward_team,
    forward_team,
    is_in_place,
    matrix_names,
    plan_of,
)
from throughtime.backends.cpu.shape import Key, Shape
from throughtime.cells import Cell
from throughtime.compiler.passes import NO_MASKS, unshare
from throughtime.compiler.plan import make_plan, why_unplanned
from throughtime.compiler.runtime import machine, threads
from throughtime.errors import ShapeError

KEPT_BYTES: Final = 16 * 1024
"""The largest arena that a region keeps; others are taken anew by each call, in one microsecond.

A layer keeps hundreds of regions.
"""

BRIEF_BYTES: Final = 4 << 20
"""The largest arena of a brief call: the last one waits for the process's next."""

Place = tuple[str, int, int]
"""A word of the block, the number of the tensor it points into, and bytes from its start."""


class RegionParts(NamedTuple):
    """What a call of a region is made of.

    Attributes:
        function: its address.
        team: that of what calls it on a team, and of what this knows of it; 0, 0: nothing does.
        words: as they are before a call; places of those that count from the arena's start and
            from the block's.
        arena: bytes that it works in.
        places: of addresses: a word, the number of a tensor, and bytes from its start.
    """

    function: int
    team: tuple[int, int]
    words: list[int]
    in_arena: list[int]
    in_block: list[int]
    arena: int
    places: list[tuple[int, int, int]]


class ShortRegion:
    """A region called with tensors in an order agreed on once.

    Attributes:
        is_brief: whether a call takes little room.
        releases: whether other threads of Python may run meanwhile.

    Args:
        template: of its words; what is not named here stays 0, which says "not given".
        function: the region's address.
        team: of threads that run it.
        places: of the addresses.
        first, weights: the number of the first tensor that is a weight, and all their names. Their
            storages are looked at once an address, for a storage that is given another size moves.
        aside: name -> bytes of what the region writes and nothing reads.
    """

    def __init__(
        self, template: Template, function: int, team: Team, places: Sequence[Place],
        first: int, weights: Sequence[str],
        aside: Mapping[str, int] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        words = template.places()
        self._template, self._address = template, function
        self.is_brief = template.arena_bytes <= BRIEF_BYTES
        self.releases = team.release_gil
        self._function = threads.caller(function, *team.how)
        self._weights, self._names = slice(first, first + len(weights)), tuple(weights)
        of_weights = range(first, first + len(weights))
        every = [(words[name], i, start) for name, i, start in places]
        self._places = tuple(place for place in every if place[1] not in of_weights)
        self._weight_places = tuple(place for place in every if place[1] in of_weights)
        self._counters = tuple(template.counters)
        self._aside = tuple((words[name], bytes) for name, bytes in aside.items())
        self._fixed: list[tuple[int, int]] = []
        self._held: RaggedWords | None = None
        self._keeps = template.arena_bytes <= KEPT_BYTES
        self._blocks: list[CallBlock] = []

    def run(self, tensors: Sequence[Tensor]) -> None:
        """Call it; the tensors live until then.

        Raises:
            ShapeError: a weight's storage is too small for it.
        """
        try:
            block = self._blocks.pop()
        except IndexError:  # the first call, or another thread is using what there is
            block = self._new()
        if block.arena is None:
            block.work_in(self._template, take(self._template.arena_bytes))
        words, addresses = block.words, [v.data_ptr() for v in tensors]
        if addresses[self._weights] != block.weights:
            self._look(tensors, addresses, block)
        for place, i, first in self._places:
            words[place] = addresses[i] + first
        for place in self._counters:
            words[place] = 0
        self._function(block.address)
        if self._blocks:
            return
        if not self._keeps and block.arena is not None:
            give_back(block.arena)
            block.arena = None
        self._blocks.append(block)

    def _look(self, tensors: Sequence[Tensor], addresses: Sequence[int], block: CallBlock) -> None:
        """Look at weights, and write their addresses, which stay until these are others."""
        for name, v in zip(self._names, tensors[self._weights], strict=True):
            check_whole(name, v)
        for place, i, first in self._weight_places:
            block.words[place] = addresses[i] + first
        block.weights = list(addresses[self._weights])

    def fix(self, name: str, address: int) -> None:
        """One word for all calls."""
        self._fixed.append((self._template.places()[name], address))

    def fix_all(self, words: RaggedWords | None) -> None:
        """The words of ragged rows for all calls, if these are any."""
        if words is not None:
            self._held = words
            for name, address in words.addresses.items():
                self.fix(name, address)

    def parts(self) -> RegionParts:
        """Of a call by machine code."""
        shared = self._function
        team = (shared.on_team, shared.call) if isinstance(shared, threads.Shared) else (0, 0)
        template, words, arena = self._template, list(self._template.words), Arena()
        arena.bytes = template.arena_bytes
        in_arena = [*template.in_arena, *(place for place, _ in self._aside)]
        for place, bytes in self._aside:
            words[place] = arena.reserve(bytes)
        for place, address in self._fixed:
            words[place] = address
        places = [*self._places, *self._weight_places]
        return RegionParts(
            self._address, team, words, in_arena, list(template.in_block), arena.bytes, places
        )

    def _new(self) -> CallBlock:
        block = CallBlock(self._template)
        for place, bytes in self._aside:
            memory = fresh(bytes)
            block.hold(memory)
            block.words[place] = memory.ctypes.data
        for place, address in self._fixed:
            block.words[place] = address
        return block


class BatchForm(NamedTuple):
    """How a batch comes and goes: (T, B, width), (B, T, width), (T, width), packed, or one step.

    Attributes:
        T, B: steps and rows.
        lead: the shape of the outputs, but for their width; one number is T B.
        rows: (B,), or () where there is no dimension for rows.
        turned: whether x is (B, T, width); the outputs never are.
        single: whether it is one step, whose first state is the output.
        sizes: of packed rows of several lengths, how many each step has; else None.
    """

    T: int
    B: int
    lead: tuple[int, ...]
    rows: tuple[int, ...]
    turned: bool = False
    single: bool = False
    sizes: Tensor | None = None

    @property
    def lines(self) -> int:
        """Rows over all steps."""
        return math.prod(self.lead)

    def long(self, x: Tensor) -> Tensor:
        """x as the long way has it: (T, B, width), or (N, width) where rows are ragged."""
        if self.sizes is not None or (x.dim() == 3 and not self.turned):
            return x
        if self.turned:
            return x.transpose(0, 1)
        if x.shape[:-1] != self.lead:
            raise ShapeError(
                f"x must be {(*self.lead, x.shape[-1])} in this call, got {tuple(x.shape)}; leave "
                f"tensors as they are between a forward pass and its backward pass"
            )
        return x.reshape(self.T, self.B, x.shape[-1])

    def as_given(self, d_x: Tensor, x: Tensor) -> Tensor:
        """A gradient (N, width), or as the long way has it, in the shape of x."""
        if self.turned:
            d_x = d_x.reshape(self.T, self.B, -1).transpose(0, 1)
        return d_x.reshape(x.shape)

    def strides(self, v: Tensor, turned: bool = False) -> tuple[int, int]:
        """Bytes from step to step and from row to row; of one step, or one row, any do."""
        size, strides = v.element_size(), v.stride()
        if self.sizes is not None:
            return 0, strides[0] * size
        if len(strides) == 3:
            step, row = strides[:2][:: -1 if turned else 1]
        else:
            row = strides[0] if len(strides) == 2 else 0
            step = self.B * row
        return step * size, row * size

    def state(self, count: int, width: int) -> tuple[int, ...]:
        """The shape of a state of so many layers and directions."""
        return (*self.rows, width) if self.single else (count, *self.rows, width)


class ShortLayer:
    """What the plain calls of a layer of these sizes have in common.

    Attributes:
        cell, I, H, D, dtype, bias: of the layer.
        widths: of the cell's states.
        parameters: of all directions, as they must be; wanted: their shapes alone.
        weights: of one direction, how many numbers.
    """

    def __init__(self, cell: Cell, I: int, H: int, D: int, bias: bool, dtype: torch.dtype) -> None:
        self.cell, self.H, self.D, self.dtype, self.bias = cell, H, D, dtype, bias
        self.I, self.bytes = I, dtype.itemsize
        self.widths = cell.widths(H)
        one = parameters_of(cell, I, H)[len(cell.layout.names(bias))]
        self.parameters = tuple(p for d in range(D) for p in one[d])
        self.wanted = tuple(p.shape for p in self.parameters)
        self.names = tuple(p.name for p in self.parameters)
        self.weights = sum(math.prod(p.shape) for p in one[0])

    def call(self, layout: BatchForm, x: Tensor) -> Call:
        """A call as its shape needs it, without weights."""
        weights: tuple[dict[str, Tensor], ...] = ({},) * self.D
        return Call(self.cell, self.H, layout.long(x), weights, batch_sizes=layout.sizes)

    def key(self, layout: BatchForm, x: Tensor, team: Team) -> Key:
        """Of a call that gives its outputs side by side."""
        row, packed = self.D * self.widths[0] * self.bytes, layout.sizes is not None
        sizes, strides = (self.D, self.H, self.I), layout.strides(x, layout.turned)
        rows = rows_of(self.call(layout, x)).extent
        y = (0 if packed else layout.B * row), row
        return Key(self.cell, NO_MASKS, self.bytes, rows, team, sizes, strides, y, packed)

    def ragged_words(
        self, layout: BatchForm, x: Tensor, shape: Shape, **more: int
    ) -> RaggedWords | None:
        """What follows from the lengths of packed rows, if they are ragged."""
        if layout.sizes is None:
            return None
        rows = rows_of(self.call(layout, x))
        return RaggedWords(rows, shape.team.chunks, shape.packed_rows(**more))

    def planes(self, B: int) -> tuple[int, ...]:
        """Bytes of one direction of each state."""
        return tuple(B * w * self.bytes for w in self.widths)


class Way(NamedTuple):
    """The forward pass of one shape.

    Attributes:
        layer, layout: of the calls.
        region: takes x, y, the weights, the start of each state where it is given, the final
            states, and in training what is saved.
        y: shape of the outputs.
        finals: of each final state; of one step, all but the first, which is the output.
        saved: of what is kept for the backward pass; () in inference.
        small: whether that is no more than the C library keeps by itself.
        shared: how many threads there are, if it or a backward pass after it is shared; else 0.
    """

    layer: ShortLayer
    layout: BatchForm
    region: ShortRegion
    y: tuple[int, ...]
    finals: tuple[tuple[int, ...], ...]
    saved: tuple[int, ...]
    small: bool
    shared: int

    def sees(self, x: Tensor, weights: Sequence[Tensor | None], state: Sequence[Tensor]) -> bool:
        """Whether the region may read these tensors, looked at one by one."""
        layer, layout = self.layer, self.layout
        if x.shape != (*(layout.lead[::-1] if layout.turned else layout.lead), layer.I):
            return False
        if not (
            can_read_weights(weights, layer.wanted, layer.dtype) and take_lines(x, layer.dtype)
        ):
            return False
        shapes = [layout.state(layer.D, w) for w in layer.widths]
        pairs = zip(state, shapes if state else (), strict=True)
        return all(take_whole(v, shape, layer.dtype) for v, shape in pairs)


def find_way(
    layer: ShortLayer, layout: BatchForm, x: Tensor, keep: bool, given: bool, place: int, count: int
) -> Way | None:
    """The forward pass of calls like this one; None: packs of its weights are kept, elsewhere.

    Args:
        layer: whose call.
        layout: of the batch.
        x: the input as it is given.
        keep: whether a backward pass follows.
        given: whether states to start from are.
        place, count: of this layer, and how many share their tensors of states.
    """
    B, D, call = layout.B, layer.D, layer.call(layout, x)
    batch = plan_of(call), call, layout.lines, B
    team = forward_team(*batch)
    many = layer.weights >= LEAST_NUMBERS and layout.lines <= MOST_ROWS
    if team.is_shared and many and not (keep or is_in_place(plan_of(call), layout.T, B)):
        return None
    template, shape, _ = template_for(layer.key(layout, x, team), keep, False)
    planes, names = layer.planes(B), [p.word for p in layer.parameters]
    places = [("x", 0, 0), ("y", 1, 0), *((word, 2 + i, 0) for i, word in enumerate(names))]
    first, aside = 2 + len(names), {}
    for word, wanted in (("start", given), ("final", True)):
        for s, plane in enumerate(planes if wanted else ()):
            if layout.single and word == "final" and not s:
                aside = {"final0 0": plane}
                continue
            places += [(f"{word}{s} {d}", first, (place * D + d) * plane) for d in range(D)]
            first += 1
    saved = kept_shape(call, plan_of(call)) if keep else ()
    if keep:
        plane = saved[1] * saved[2] * saved[3] * layer.bytes
        places += [(f"saved {d}", first, d * plane) for d in range(D)]
    region = ShortRegion(template, shape.code.region, team, places, 2, layer.names, aside)
    region.fix_all(layer.ragged_words(layout, x, shape))
    finals = tuple(layout.state(count * D, w) for w in layer.widths)[layout.single :]
    y, small = (*layout.lead, D * layer.widths[0]), math.prod(saved) * layer.bytes < LEAST_BYTES
    shared = threads.available() * (team.is_shared or (keep and backward_team(*batch).is_shared))
    return Way(layer, layout, region, y, finals, saved, small, shared)


def prepare(
    cell: Cell, I: int, H: int, D: int, bias: bool, dtype: torch.dtype
) -> ShortLayer | None:
    """A layer with a short way, or None: not all cells, machines and numbers have one."""
    if dtype not in FLOATS or machine.host() is None or cell.layout.inputs:
        return None
    if why_unplanned(cell, H) is not None or unshare(cell, H) is not cell:
        return None
    plan = make_plan(cell, NO_MASKS, H)
    layout, names = cell.layout, cell.layout.names(bias)
    every = len(layout.input_gates), len(layout.recurrent_gates) + len(layout.products)
    whole = (len(plan.with_a), len(plan.with_u)) == every  # each gradient is written to its end
    if not whole or not {"weight_ih", *matrix_names(cell)} <= set(names):
        return None
    if any(cell.blocks_of(n) > 1 for n in layout.products):
        return None
    return ShortLayer(cell, I, H, D, bias, dtype)
