"""The backward pass of a call in one region of machine code."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call, Gradients
from throughtime.backends.cpu.sizes import (
    Rows,
    Team,
    flops_of,
    rows_of,
    steps_in_block,
    team_for,
    strides_of,
)
from throughtime.backends.cpu.words import (
    Arena,
    Given,
    Shape,
    Template,
    call_addresses,
    common_words,
    contiguous,
    direction_words,
    gate_numbers,
    shared_lists,
    start_of,
)
from throughtime.compiler.llvm import machine
from throughtime.compiler.llvm.code import backward_code
from throughtime.compiler.plan import Plan, plan

LEAST_ROWS = 128
"""Rows of a block, so that sums over them are worth reading and writing the weight gradients."""


@dataclass(frozen=True)
class Room:
    """Where the region writes gradients; matrices and x padded to whole vectors.

    Attributes:
        x: (D, N, I), or None.
        W: for each direction (rows of weight_ih, I); empty like all of weights where not wanted.
        U: (rows of weight_hh, H).
        others: by name, biases and vectors as they are.
        start: for each state (D, B, H).
    """

    x: Tensor | None
    W: list[Tensor]
    U: list[Tensor]
    others: list[dict[str, Tensor]]
    start: list[Tensor]


def run(
    call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], wants_x: bool,
    wants_weights: bool,
) -> Gradients:  # fmt: skip
    """Gradients by x, by the weights where they are wanted, and by the state at the start."""
    call = contiguous(call)
    found, rows = plan(call.cell), rows_of(call)
    assert isinstance(found, Plan)
    room = _room(call, found, rows, wants_x, wants_weights)
    if rows.B:
        _carry(call, found, rows, kept, d_results, room)
    weights = tuple(_weights(call, room, d) for d in range(call.directions))
    return Gradients(_by_x(call, rows, room.x), weights, tuple(room.start))


def _room(call: Call, found: Plan, rows: Rows, wants_x: bool, wants_weights: bool) -> Room:
    target = machine.host()
    assert target is not None
    lanes = target.lanes(8 * call.x.element_size())
    D, H, I = call.directions, call.hidden_size, call.x.shape[-1]
    whole_H, whole_I = (-(-n // lanes) * lanes for n in (H, I))
    new = call.x.new_empty
    none = new if rows.T and rows.B else call.x.new_zeros  # the region writes them, if it runs
    wanted = range(D) if wants_weights else ()
    matrices = ("weight_ih", "weight_hh")
    return Room(
        new((D, rows.N, whole_I)) if wants_x else None,
        [none((len(found.with_a) * H, whole_I)) for _ in wanted],
        [none((len(found.with_u) * H, whole_H)) for _ in wanted],
        [{n: none(v.shape) for n, v in call.weights[d].items() if n not in matrices}
         for d in wanted],
        [new((D, rows.B, H)) for _ in found.state_names],
    )  # fmt: skip


class _Key(NamedTuple):
    """What the words of a call with full rows follow from."""

    cell: Any
    bytes: int
    target: machine.Machine
    rows: Rows
    team: Team
    sizes: tuple[int, int, int]
    x: tuple[int, int]
    y: tuple[int, int]
    packed: bool
    d_y: tuple[int, int]
    d_y_first: int
    wants: tuple[bool, bool]


def _carry(
    call: Call, found: Plan, rows: Rows, kept: Sequence[Tensor],
    d_results: Sequence[Tensor | None], room: Room,
) -> None:  # fmt: skip
    y, saved = kept
    d_y, *d_final = d_results
    if d_y is not None and d_y.stride(-1) != 1 and call.hidden_size > 1:
        d_y = d_y.contiguous()
    packed, size = call.batch_sizes is not None, y.element_size()
    team = team_for(2 * flops_of(found, call, rows.N), call.directions, rows.B)
    d_y_strides = (0, 0) if d_y is None else strides_of(d_y, packed)
    target = machine.host()
    assert target is not None
    d_y_first = 0 if d_y is None else d_y.stride(-2) * size
    key = _Key(
        call.cell, size, target, rows, team,
        (call.directions, call.hidden_size, call.x.shape[-1]), strides_of(call.x, packed),
        strides_of(y, packed), packed, d_y_strides, d_y_first, (room.x is not None, bool(room.W)),
    )  # fmt: skip
    ragged = packed or call.lengths is not None
    template, shape = (_template if ragged else _kept_template)(key)
    finals = [None if v is None else v.contiguous() for v in d_final]
    start = start_of(call)
    found_at = call_addresses(call, start) | _addresses(call, y, saved, finals, room)
    found_at["d_y"] = int(template.word("zeros")) if d_y is None else d_y.data_ptr()
    template.run(shape, found_at)


def _addresses(
    call: Call, y: Tensor, saved: Tensor, finals: Sequence[Tensor | None], room: Room
) -> dict[str, int]:
    """Addresses of what the backward pass reads and writes beside the call's own tensors."""

    def at(v: Tensor | None, d: int) -> int:
        return 0 if v is None else v.data_ptr() + d * v.stride(0) * v.element_size()

    found = {"y": y.data_ptr()}
    for d in range(call.directions):
        found[f"saved {d}"] = at(saved, d)
        found[f"d_x {d}"] = at(room.x, d)
        for s, (final, start) in enumerate(zip(finals, room.start, strict=True)):
            found[f"d_final{s} {d}"], found[f"d_start{s} {d}"] = at(final, d), at(start, d)
        for name in ("d_W", "d_U", "d_bias_ih", "d_bias_hh"):
            found[f"{name} {d}"] = 0
        for name in call.cell.layout.vectors:
            found[f"d_{name} {d}"] = 0
        if room.W:
            found[f"d_W {d}"], found[f"d_U {d}"] = at(room.W[d], 0), at(room.U[d], 0)
            for name, v in room.others[d].items():
                found[f"d_{name} {d}"] = v.data_ptr()
    return found


def _template(key: _Key) -> tuple[Template, Shape]:
    found = plan(key.cell)
    assert isinstance(found, Plan)
    shape = Shape(
        found, backward_code(found, key.bytes, key.target), key.rows, key.team, *key.sizes, key.x,
        key.y, key.packed, gate_numbers(found, key.cell),
    )  # fmt: skip
    arena = Arena()
    block, sizes = _blocks(shape, key.wants[0])
    places = [arena.reserve_all(sizes) for _ in range(shape.D)]
    common = common_words(
        shape, cell_backward=shape.code.cell, packs=2, block=block, d_y=Given("d_y"),
        wants_x=int(key.wants[0]),
        wants_weights=int(key.wants[1]), reads_y=int(found.reads_output),
    )  # fmt: skip
    template = Template(arena, common, 64 * (shape.D + 2) + key.team.chunks, shape.D)
    shared_lists(template, shape)
    template.set_steps("d_y", shape, key.d_y)
    for d in range(shape.D):
        words = direction_words(template, shape, d) | places[d]
        words["d_y_first"] = d * key.d_y_first
        words |= {name: Given(f"{name} {d}") for name in ("d_x", "d_W", "d_U")}
        words |= {"d_W_bias": Given(f"d_bias_ih {d}"), "d_U_bias": Given(f"d_bias_hh {d}")}
        words["d_own"] = template.list_of([Given(f"d_{name} {d}") for name in found.vectors])
        for name in ("d_final", "d_start"):
            lists = [Given(f"{name}{s} {d}") for s in range(len(found.state_names))]
            words[name] = template.list_of(lists)
        template.set_direction(d, words)
    return template, shape


_kept_template = functools.lru_cache(maxsize=256)(_template)


def _blocks(shape: Shape, wants_x: bool) -> tuple[int, dict[str, int]]:
    """Steps of a block, and bytes of what one direction works in."""
    plan, rows, H_row, I_row = shape.plan, shape.rows, shape.H_row, shape.I_row
    line = (len(plan.sums) + len(plan.vectors)) * H_row + shape.code.kind.size
    bytes = line + I_row + 3 * H_row
    block = steps_in_block(rows.T, rows.B * shape.D, bytes, LEAST_ROWS)
    count = min(rows.N, block * rows.B)
    return block, {
        "U_back": len(plan.with_u) * shape.H * H_row,
        "W_back": len(plan.with_a) * shape.H * I_row if wants_x else 0,
        "bias": len(plan.sums) * H_row,
        "vector": len(plan.vectors) * H_row,
        "d_state": len(plan.state_names) * rows.B * H_row,
        "direct": rows.B * H_row,
        "x_block": count * I_row,
        "old_block": count * H_row,
        "y_block": count * H_row if plan.reads_output else 0,
        "d_y_block": count * H_row,
        "d_sums": count * line,
        "d_bias": line,
    }


def _by_x(call: Call, rows: Rows, found: Tensor | None) -> Tensor | None:
    """(D, N, padded I) to the gradient in x's own shape."""
    if found is None:
        return None
    x = call.x
    total = found[0] if len(found) == 1 else found[0] + found[1]
    if total.shape[-1] != x.shape[-1]:
        total = total[:, : x.shape[-1]].contiguous()
    if call.lengths is None:
        return total.view(x.shape)
    there = torch.from_numpy(np.arange(rows.B) < rows.alive[:, None])
    sorted_rows = total.new_zeros(x.shape)
    sorted_rows[there] = total
    return torch.zeros_like(sorted_rows).index_copy_(1, torch.from_numpy(rows.order), sorted_rows)


def _weights(call: Call, room: Room, d: int) -> dict[str, Tensor]:
    """Gradients of one direction's parameters by name; empty where none were wanted."""
    if not room.W:
        return {}
    grads = dict(room.others[d])
    for name, found in (("weight_ih", room.W[d]), ("weight_hh", room.U[d])):
        if name in call.weights[d]:
            columns = call.weights[d][name].shape[1]
            grads[name] = found if found.shape[1] == columns else found[:, :columns].contiguous()
    return grads
