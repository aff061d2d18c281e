"""Where the backward pass writes gradients, and how they become those of the call's tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.restarts import sums_by_initial
from throughtime.backends.cpu.rows import Rows
from throughtime.backends.cpu.sizes import target, whole_vectors
from throughtime.backends.cpu.widths import matrix_names, widths_for
from throughtime.compiler.plan import Plan


@dataclass(frozen=True)
class Room:
    """Where the region writes gradients; matrices and x padded to whole vectors.

    Attributes:
        x: (D, N, I), or None.
        W: for each direction (rows of weight_ih, I); empty like all of weights where not wanted.
        U: weight_hh and each product's matrix, their columns padded likewise.
        others: by name, biases and vectors as they are.
        start: for each state (D, B, H).
        inputs: (D, N, direct inputs, then masks left as they are, H), padded; or None.
        initial: (D, states, B, H) what resets carry to where they go, padded; or None.
    """

    x: Tensor | None
    W: list[Tensor]
    U: list[list[Tensor]]
    others: list[dict[str, Tensor]]
    start: list[Tensor]
    inputs: Tensor | None
    initial: Tensor | None


def room_for(call: Call, found: Plan, rows: Rows, wants_x: bool, wants_weights: bool) -> Room:
    """Memory for what is wanted."""
    lanes = target().lanes(8 * call.x.element_size())
    D, H, I = call.directions, call.hidden_size, call.x.shape[-1]
    new, layout, widths = call.x.new_empty, call.cell.layout, widths_for(call.cell, H)
    line, whole_I = (whole_vectors(n, lanes) for n in (widths.line, I))
    # The region writes all of them, if it runs, but for gates that reach nothing.
    sums = len(layout.input_gates), len(layout.recurrent_gates) + len(layout.products)
    all = (len(found.with_a), len(found.with_u)) == sums and rows.T and rows.B
    none = new if all else call.x.new_zeros
    wanted = range(D) if wants_weights else ()
    matrices = ("weight_ih", *matrix_names(call.cell))
    shapes = [(lines, whole_vectors(columns, lanes)) for lines, columns in widths.shapes]
    return Room(
        new((D, rows.N, whole_I)) if wants_x else None,
        [none((sums[0] * H, whole_I)) for _ in wanted],
        [[none(shape) for shape in shapes] for _ in wanted],
        [{n: none(v.shape) for n, v in call.weights[d].items() if n not in matrices}
         for d in wanted],
        [new((D, rows.B, width)) for width in widths.states],
        new((D, rows.N, len(found.lines), line)) if found.inputs else None,
        sums_by_initial(call, lanes),
    )  # fmt: skip


def by_x(call: Call, rows: Rows, found: Tensor | None) -> Tensor | None:
    """(D, N, padded I) to the gradient in x's own shape."""
    if found is None:
        return None
    width = call.x.shape[-1]
    total = found[0] if len(found) == 1 else found[0] + found[1]
    if total.shape[-1] != width:
        total = total[:, :width].contiguous()
    return as_given(call, rows, total)


def as_given(call: Call, rows: Rows, total: Tensor) -> Tensor:
    """(N, width) to the call's own rows and steps, zero behind a row's end."""
    whole = (*call.x.shape[:-1], total.shape[-1])
    if call.lengths is None:
        return total.view(whole)
    lines = total.new_zeros((rows.T * rows.B, total.shape[-1]))
    return lines.index_copy_(0, torch.from_numpy(rows.lines), total).view(whole)


def by_weights(call: Call, room: Room, d: int) -> dict[str, Tensor]:
    """Gradients of one direction's parameters by name; empty where none were wanted."""
    if not room.W:
        return {}
    grads = dict(room.others[d])
    names = ("weight_ih", *matrix_names(call.cell))
    for name, found in zip(names, (room.W[d], *room.U[d]), strict=True):
        if name in call.weights[d]:
            columns = call.weights[d][name].shape[1]
            grads[name] = found if found.shape[1] == columns else found[:, :columns].contiguous()
    return grads
