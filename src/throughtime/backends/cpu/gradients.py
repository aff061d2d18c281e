"""Where backward writes gradients, and how a call gets them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.active_rows import Rows
from throughtime.backends.cpu.look import parameters_of
from throughtime.backends.cpu.operands import input_units, sums_by_initial
from throughtime.backends.cpu.schedule import (
    matrix_names,
    target,
    whole_vectors,
    widths_for,
)
from throughtime.cells import Cell
from throughtime.compiler.plan import Plan


@dataclass(frozen=True)
class Room:
    """Where the region writes gradients; x, and matrices that are added to, in whole vectors.

    Attributes:
        x: (D, N, I), or None; with lengths (D, N + 1, I), the last row for what is after an end.
        W: for each direction (rows of weight_ih, I); empty like all of weights where not wanted.
        U: weight_hh and each product's matrix.
        others: by name, biases and vectors as they are.
        start: for each state (D, B, H).
        inputs: (D, N, direct inputs, then masks left as they are, H), padded; or None.
        initial: (D, states, B, H) what resets carry to where they go, padded; or None.
        chains: as in `Sums`; None where gradients begin at zero.
        norms: (D, N, states) of each row's gradient by each new state; or None.
        matrices: names of W and those of U.
    """

    x: Tensor | None
    W: list[Tensor]
    U: list[list[Tensor]]
    others: list[dict[str, Tensor]]
    start: list[Tensor]
    inputs: Tensor | None
    initial: Tensor | None
    chains: Tensor | None = None
    norms: Tensor | None = None
    matrices: tuple[str, ...] = ()

    def x_is(self, d_x: Tensor | None) -> bool:
        """Whether the gradient by x is written into this very tensor."""
        return d_x is not None and self.x is not None and self.x.data_ptr() == d_x.data_ptr()


@dataclass(frozen=True)
class GradientSums:
    """Gradients by the weights and by `initial` so far, to which several backward passes add.

    Attributes:
        W, U, others, initial: as in `Room`.
        chains: (D, sums and vectors of a row, padded) where those of biases and vectors grow.
    """

    W: list[Tensor]
    U: list[list[Tensor]]
    others: list[dict[str, Tensor]]
    initial: Tensor | None
    chains: Tensor


class GradientShapes(NamedTuple):
    """Shapes of gradients.

    Attributes:
        lanes: numbers of a vector.
        line, inputs: numbers of the longest row of units and of x, in whole vectors.
        W: of weight_ih.
        U: of weight_hh and each product's matrix.
        matrices: names of all of these.
        others: of biases and vectors, by name.
    """

    lanes: int
    line: int
    inputs: int
    W: tuple[int, int]
    U: tuple[tuple[int, int], ...]
    matrices: tuple[str, ...]
    others: Mapping[str, torch.Size]


def _shapes_of(call: Call) -> GradientShapes:
    return shapes_for(call.cell, call.x.shape[-1], call.hidden_size, call.x.element_size())


@functools.lru_cache(maxsize=256)
def shapes_for(cell: Cell, I: int, H: int, bytes: int) -> GradientShapes:
    lanes, widths = target().lanes(8 * bytes), widths_for(cell, H)
    inputs, matrices = whole_vectors(I, lanes), ("weight_ih", *matrix_names(cell))
    W = (len(cell.layout.input_gates) * H, I)
    line = whole_vectors(widths.line, lanes)
    everyone = parameters_of(cell, I, H)
    others = {p.name: p.shape for p in everyone[max(everyone)][0] if p.name not in matrices}
    return GradientShapes(lanes, line, inputs, W, tuple(widths.shapes), matrices, others)


def sums_for(call: Call, plan: Plan) -> GradientSums:
    """Zeros, for backward passes of calls with these weights, one after the other."""
    shapes, lines = _shapes_of(call), len(plan.sums) + len(plan.vectors)
    chains = call.x.new_zeros((call.directions, lines * shapes.line + shapes.lanes))
    weights = _weights(call, shapes, call.x.new_zeros, call.directions, shapes.lanes)
    return GradientSums(*weights, sums_by_initial(call, shapes.lanes), chains)


def room_for(
    call: Call, plan: Plan, rows: Rows, wants_x: bool, wants_weights: bool,
    sums: GradientSums | None = None, d_x: Tensor | None = None,
) -> Room:  # fmt: skip
    """Memory for what is wanted; the gradient by x is written into `d_x` itself where it fits."""
    shapes, layout = _shapes_of(call), call.cell.layout
    D, new = call.directions, call.x.new_empty
    # The region writes all of them, if it runs, but for gates that reach nothing.
    every = len(layout.input_gates), len(layout.recurrent_gates) + len(layout.products)
    whole = (len(plan.with_a), len(plan.with_u)) == every and rows.T and rows.B
    none = new if whole else call.x.new_zeros
    if sums is None or not wants_weights:
        weights = _weights(call, shapes, none, D if wants_weights else 0)
    else:
        weights = sums.W, sums.U, sums.others
    x = (D, rows.N + (call.lengths is not None), shapes.inputs)
    fits = d_x is not None and d_x.numel() == math.prod(x) and call.lengths is None
    return Room(
        (d_x.view(x) if d_x is not None and fits else new(x)) if wants_x else None,
        *weights,
        [new((D, rows.B, width)) for width in call.cell.widths(call.hidden_size)],
        new((D, rows.N, len(plan.lines), shapes.line)) if plan.inputs else None,
        sums_by_initial(call, shapes.lanes) if sums is None else sums.initial,
        None if sums is None else sums.chains,
        None if call.norms is None else new((D, rows.N, len(plan.state_names))),
        shapes.matrices,
    )


def _weights(
    call: Call, shapes: GradientShapes, new: Callable[..., Tensor], directions: int, lanes: int = 1
) -> tuple[list[Tensor], list[list[Tensor]], list[dict[str, Tensor]]]:
    """W, U and others of a `Room`, for so many directions; lines of matrices in whole vectors."""
    wanted, matrices = call.weights[:directions], shapes.matrices

    def matrix(shape: tuple[int, int]) -> Tensor:
        return new((shape[0], whole_vectors(shape[1], lanes)))

    return (
        [matrix(shapes.W) for _ in wanted],
        [[matrix(shape) for shape in shapes.U] for _ in wanted],
        [{n: new(shapes.others[n]) for n in w if n not in matrices} for w in wanted],
    )


def by_x(call: Call, rows: Rows, lines: Tensor | None) -> Tensor | None:
    """(D, N, padded I) to the gradient in x's own shape, zero after a row's end."""
    if lines is None:
        return None
    width = call.x.shape[-1]
    total = lines[0] if len(lines) == 1 else lines[0] + lines[1]
    if call.lengths is None:
        return as_given(call, rows, cut_lines(total, width))
    total = total[:, :width]
    total[rows.N] = 0
    return total.index_select(0, torch.from_numpy(rows.places)).view(call.x.shape)


_ALONE: Final = 1 << 18
"""Numbers up to which one thread copies them in less time than a second one may take to wake."""


def cut_lines(lines: Tensor, count: int) -> Tensor:
    """So many numbers of each line, side by side."""
    if lines.shape[-1] == count:
        return lines.contiguous()
    if lines.numel() <= _ALONE:
        return torch.narrow_copy(lines, -1, 0, count)
    return lines[..., :count].contiguous()


def as_given(call: Call, rows: Rows, total: Tensor) -> Tensor:
    """(N, width) to the call's own rows and steps, zero after a row's end."""
    whole = (*call.x.shape[:-1], total.shape[-1])
    if call.lengths is None:
        return total.view(whole)
    lines = total.new_zeros((rows.T * rows.B, total.shape[-1]))
    return lines.index_copy_(0, torch.from_numpy(rows.lines), total).view(whole)


def give_norms(call: Call, rows: Rows, lines: Tensor | None) -> None:
    """Norms to where the call wants them, zero after a row's end."""
    if call.norms is not None and lines is not None:
        for d, norms in enumerate(lines):
            call.norms[..., d, :] = as_given(call, rows, norms)


def by_weights(call: Call, room: Room, d: int) -> dict[str, Tensor]:
    """Gradients of one direction's parameters by name; empty where none were wanted."""
    if not room.W:
        return {}
    grads = dict(room.others[d])
    for name, lines in zip(room.matrices, (room.W[d], *room.U[d]), strict=True):
        if name in call.weights[d]:
            shape = call.weights[d][name].shape  # of a matrix with blocks they are apart
            grads[name] = cut_lines(lines, shape[-1]).view(shape)
    return grads


def by_inputs(call: Call, plan: Plan, rows: Rows, d_lines: Tensor | None) -> dict[str, Tensor]:
    """(D, N, inputs and masks, H padded) to the gradient by each input, in its own shape."""
    if d_lines is None or call.inputs is None:
        return {}
    total = d_lines[0] if len(d_lines) == 1 else d_lines[0] + d_lines[1]
    grads = {}
    for k, (name, units) in enumerate(input_units(call, plan).items()):
        line = total[:, k, :units]
        one = call.inputs[name].shape[-1] == 1
        grads[name] = as_given(call, rows, sum_units(line) if one else line.contiguous())
    return grads


def sum_units(line: Tensor) -> Tensor:
    """(N, H) to (N, 1), by halves: the order of the sum follows from H alone."""
    while (width := line.shape[-1]) > 1:
        half = (width + 1) // 2
        folded = line[:, : width - half] + line[:, half:]
        line = torch.cat([folded, line[:, width - half : half]], -1)
    return line.contiguous()
