"""Where the backward pass writes gradients, and how they become those of the call's tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.restarts import sums_by_initial
from throughtime.backends.cpu.rows import Rows
from throughtime.backends.cpu.sizes import target, whole_vectors
from throughtime.compiler.plan import Plan


@dataclass(frozen=True)
class Room:
    """Where the region writes gradients; matrices and x padded to whole vectors.

    Attributes:
        x: (D, N, I), or None.
        W: for each direction (rows of weight_ih, I); empty like all of weights where not wanted.
        U: (rows of weight_hh, H).
        others: by name, biases and vectors as they are.
        start: for each state (D, B, H).
        inputs: (D, N, direct inputs, H), padded, or None where there are none.
        initial: (D, states, B, H) what resets carry to where they go, padded; or None.
    """

    x: Tensor | None
    W: list[Tensor]
    U: list[Tensor]
    others: list[dict[str, Tensor]]
    start: list[Tensor]
    inputs: Tensor | None
    initial: Tensor | None


def room_for(call: Call, found: Plan, rows: Rows, wants_x: bool, wants_weights: bool) -> Room:
    """Memory for what is wanted."""
    lanes = target().lanes(8 * call.x.element_size())
    D, H, I = call.directions, call.hidden_size, call.x.shape[-1]
    whole_H, whole_I = (whole_vectors(n, lanes) for n in (H, I))
    new, layout = call.x.new_empty, call.cell.layout
    # The region writes all of them, if it runs, but for gates that reach nothing.
    gates = len(layout.input_gates), len(layout.recurrent_gates)
    whole = (len(found.with_a), len(found.with_u)) == gates and rows.T and rows.B
    none = new if whole else call.x.new_zeros
    wanted = range(D) if wants_weights else ()
    matrices = ("weight_ih", "weight_hh")
    return Room(
        new((D, rows.N, whole_I)) if wants_x else None,
        [none((gates[0] * H, whole_I)) for _ in wanted],
        [none((gates[1] * H, whole_H)) for _ in wanted],
        [{n: none(v.shape) for n, v in call.weights[d].items() if n not in matrices}
         for d in wanted],
        [new((D, rows.B, H)) for _ in found.state_names],
        new((D, rows.N, len(found.inputs), whole_H)) if found.inputs else None,
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
    for name, found in (("weight_ih", room.W[d]), ("weight_hh", room.U[d])):
        if name in call.weights[d]:
            columns = call.weights[d][name].shape[1]
            grads[name] = found if found.shape[1] == columns else found[:, :columns].contiguous()
    return grads
