"""One layer's plain calls, each shape prepared when it first comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.active_rows import Extent
from throughtime.backends.cpu.forward_pass import kept_shapes, template_for
from throughtime.backends.cpu.look import FLOATS, parameters_of, take_lines, take_plain
from throughtime.backends.cpu.operands import plan_of
from throughtime.backends.cpu.products import LEAST_NUMBERS
from throughtime.backends.cpu.schedule import (
    FLOPS_PER_US,
    PARALLEL_US,
    Team,
    flops_of,
    matrix_names,
    strides_of,
    team_for,
)
from throughtime.backends.cpu.shape import Key
from throughtime.backends.cpu.short.region import Shapes, ShortRegion
from throughtime.cells import Cell
from throughtime.compiler.passes.masks import NO_MASKS
from throughtime.compiler.passes.unshare import apart
from throughtime.compiler.plan import Plan, plan
from throughtime.compiler.runtime import machine


class Way(NamedTuple):
    """What a forward pass of one shape needs beside its tensors.

    Attributes:
        region: takes x, y, the weights, then start and final of each state and direction, and in
            training what is saved of each direction.
        y: the shape (T, B, D W) of the outputs.
        states: of each state, (D, B, width).
        planes: bytes of one direction of each state.
        saved: shape of what is kept for the backward pass; () in inference.
        zeros: what stands for the addresses of states that are zero.
    """

    region: ShortRegion
    y: tuple[int, int, int]
    states: tuple[tuple[int, int, int], ...]
    planes: tuple[int, ...]
    saved: tuple[int, ...]
    zeros: tuple[int, ...]


class ShortForward:
    """The plain calls of a layer of these sizes.

    Attributes:
        cell, I, H, D, dtype, bias: of the layer.
        widths: of the cell's states.
        parameters: of all directions, as they must be; wanted: their shapes and bytes alone.
    """

    def __init__(self, cell: Cell, I: int, H: int, D: int, bias: bool, dtype: torch.dtype) -> None:
        self.cell, self.H, self.D, self.dtype, self.bias = cell, H, D, dtype, bias
        self.I, self._bytes = I, dtype.itemsize
        self.widths = cell.widths(H)
        one = parameters_of(cell, I, H, self._bytes)[len(cell.layout.names(bias))]
        self.parameters = tuple(p for d in range(D) for p in one[d])
        self.wanted = tuple((p.shape, p.bytes) for p in self.parameters)
        # Inference of large layers finds weights that are packed already, the long way.
        self._leaves_packs = sum(p.shape.numel() for p in one[0]) >= LEAST_NUMBERS
        self._ways = Shapes[Way]()

    def way(self, x: Tensor, keep: bool) -> Way | None:
        """For an x (T, B, I), neither T nor B zero; None: it goes the long way."""
        T, B, _ = x.shape
        step, row, _ = x.stride()
        key = T, B, step, row, keep
        try:
            return self._ways.known[key]
        except KeyError:
            return self._ways.add(key, lambda: self._way(x, keep))

    def _way(self, x: Tensor, keep: bool) -> Way | None:
        T, B, _ = x.shape
        call = self.call(x)
        flops = flops_of(plan_of(call), call, T * B)
        if flops * (1 + keep) > PARALLEL_US * FLOPS_PER_US or (self._leaves_packs and not keep):
            return None
        team = team_for(flops, self.D, B)
        template, shape, _ = template_for(self.key(x, team), keep, False)
        D, states = range(self.D), range(len(self.widths))
        names = ["x", "y", *(p.word for p in self.parameters)]
        names += [f"{word}{s} {d}" for word in ("start", "final") for s in states for d in D]
        names += [f"saved {d}" for d in D if keep]
        region = ShortRegion(template, shape.code.region, team.release_gil, names)
        return Way(
            region,
            (T, B, self.D * self.widths[0]),
            tuple((self.D, B, w) for w in self.widths),
            tuple(B * w * self._bytes for w in self.widths),
            kept_shapes(call)[0] if keep else (),
            (0,) * len(self.widths),
        )

    def call(self, x: Tensor) -> Call:
        """A call as its shape needs it, without weights."""
        return Call(self.cell, self.H, x, ({},) * self.D)

    def key(self, x: Tensor, team: Team) -> Key:
        """Of a call that gives its outputs side by side."""
        T, B, _ = x.shape
        row = self.D * self.widths[0] * self._bytes
        sizes, strides = (self.D, self.H, self.I), (strides_of(x, False), (B * row, row))
        return Key(
            self.cell, NO_MASKS, self._bytes, Extent(T, B, False), team, sizes, *strides, False
        )

    def read(self, x: Tensor, weights: Sequence[Tensor | None]) -> list[int] | None:
        """Addresses of x and of the weights of all directions; None: one needs a closer look."""
        found = take_plain(weights, self.wanted, self.dtype)
        at = take_lines(x, self.dtype)
        return [at, *found] if at and found is not None else None

    def run(
        self, way: Way, x: Tensor, read: list[int], start: Sequence[int], final: Sequence[int],
        saved: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The outputs (T, B, D W).

        Args:
            way: of the call.
            x: (T, B, I).
            read: as `read` gave it.
            start, final: addresses of each state (D, B, width); of no start 0.
            saved: what is kept for the backward pass, or None.
        """
        y = x.new_empty(way.y)
        at, *others = read
        if self.D == 1:
            addresses = [at, y.data_ptr(), *others, *start, *final]
        else:
            planes = way.planes
            addresses = [at, y.data_ptr(), *others, *self.each(start, planes)]
            addresses += self.each(final, planes)
        if saved is not None:
            addresses += self.each((saved.data_ptr(),), (saved.stride(0) * self._bytes,))
        way.region.run(addresses)
        return y

    def each(self, places: Sequence[int], planes: Sequence[int]) -> Sequence[int]:
        """The address of each direction of tensors (D, ...); 0 for what is not."""
        if self.D == 1:
            return places
        return [
            at and at + d * plane
            for at, plane in zip(places, planes, strict=True)
            for d in range(self.D)
        ]


def prepare(
    cell: Cell, I: int, H: int, D: int, bias: bool, dtype: torch.dtype
) -> ShortForward | None:
    """A layer with a short way, or None: not all cells, machines and numbers have one."""
    if dtype not in FLOATS or machine.host() is None or cell.layout.inputs:
        return None
    found = plan(cell, NO_MASKS, H)
    if not isinstance(found, Plan) or apart(cell, H) is not cell:
        return None
    layout, names = cell.layout, cell.layout.names(bias)
    every = len(layout.input_gates), len(layout.recurrent_gates) + len(layout.products)
    whole = (len(found.with_a), len(found.with_u)) == every  # each gradient is written to its end
    if not whole or not {"weight_ih", *matrix_names(cell)} <= set(names):
        return None
    return (
        None
        if any(cell.blocks_of(n) > 1 for n in layout.products)
        else ShortForward(cell, I, H, D, bias, dtype)
    )
