"""The forward pass of a call in one region of machine code."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from throughtime.backends.call import Call, Result, sequence_count
from throughtime.backends.cpu.active_rows import Rows, rows_of
from throughtime.backends.cpu.block import (
    Arena,
    CallAddress,
    Queue,
    Template,
    carry,
    common_words,
    direction_words,
    shared_lists,
)
from throughtime.backends.cpu.look import check_input
from throughtime.backends.cpu.memory import lend
from throughtime.backends.cpu.operands import GivenWords, Traces
from throughtime.backends.cpu.products import (
    PACKED,
    PackLayout,
    early_tiles,
    has_room,
    layout_of,
    owner_of,
    packed,
    packed_sizes,
    runs_forward,
    set_runs,
)
from throughtime.backends.cpu.schedule import (
    forward_team,
    is_in_place,
    part_address,
    plan_of,
    steps_in_block,
    target,
    whole_vectors,
    widths_for,
)
from throughtime.backends.cpu.shape import Key, Shape, key_of, shape_of
from throughtime.compiler.llvm.abi import WIDEST, panel_vectors, part_sizes
from throughtime.compiler.llvm.library import forward_code
from throughtime.compiler.plan import Plan, make_plan
from throughtime.compiler.sweeps import lines_forward

HIGHEST = 12
"""Rows of the highest tile of any machine."""

LEAST_ROWS = 48
"""Rows of a block's input product, so that its tiles are full."""


def run(
    call: Call, keep: bool, to: Sequence[Tensor] = (), saved: Tensor | None = None,
    queue: Queue | None = None,
) -> tuple[Result, list[Tensor]]:  # fmt: skip
    """The result, its sequences in `to` if that has some, and with `keep` what backward needs.

    That is in the first rows of `saved`, if there is one. With a queue, all of it is there once
    the queue has run. Calls in training leave no packed weights: those with keep, and segments,
    which have a place for their sequences.
    """
    call = check_input(call)
    plan, rows = plan_of(call), rows_of(call)
    x, D = call.x, call.directions
    widths = call.cell.widths(call.hidden_size)
    traced = widths[: sequence_count(call)]
    sequences = tuple(to) or tuple(x.new_empty((*x.shape[:-1], D, w)) for w in traced)
    if call.lengths is not None:
        for v in sequences:
            v.zero_()
    final = [x.new_empty((D, rows.B, width)) for width in widths]
    result = Result(sequences, tuple(final))
    if keep:
        shape = kept_shape(call, plan)
        saved = lend(x, shape) if saved is None else saved[:, : shape[1]]
    if rows.B:
        owner = None if keep or to else owner_of(call, rows.N)
        _carry(call, plan, rows, result, saved, queue, owner)
    return result, [] if saved is None else [saved]


def kept_shape(call: Call, plan: Plan) -> tuple[int, ...]:
    """Of what `run` keeps: directions, rows over all steps (padded ones too), values, units."""
    lanes = target().lanes(8 * call.x.element_size())
    units = whole_vectors(widths_for(call.cell, call.hidden_size).line, lanes)
    rows = call.x.shape[0] if call.batch_sizes is not None else call.x.shape[0] * call.x.shape[1]
    return (call.directions, rows, plan.saved_size(units), units)


def _carry(
    call: Call, plan: Plan, rows: Rows, result: Result, saved: Tensor | None,
    queue: Queue | None, owner: Tensor | None,
) -> None:  # fmt: skip
    team = forward_team(plan, call, rows.N, rows.B)
    key = key_of(call, rows, team, result.sequences[0])
    template, shape, layout = template_for(key, saved is not None, owner is not None)
    if owner is not None and not has_room(owner, layout):
        owner, (template, shape, layout) = None, template_for(key, False, False)
    given = GivenWords(call, shape, rows, shape.packed_rows())
    traces = Traces(result.sequences[1:], call.directions, call.batch_sizes is not None)
    addresses = given.addresses | traces.addresses | _addresses(call, result, saved)
    if owner is None:
        held = call, result, saved, given, traces
        carry(queue, template, shape.code.region, team, addresses, None, *held)
        return
    with packed(owner, layout) as words:
        template.run(shape.code.region, team, addresses | words)


def _addresses(call: Call, result: Result, saved: Tensor | None) -> dict[str, int]:
    """Addresses of what the forward pass writes."""
    addresses = {"y": result.sequences[0].data_ptr()}
    for d in range(call.directions):
        for s, v in enumerate(result.final):
            addresses[f"final{s} {d}"] = part_address(v, d)
        addresses[f"saved {d}"] = part_address(saved, d)
    return addresses


@functools.lru_cache(maxsize=128)
def template_for(key: Key, keep: bool, waits: bool) -> tuple[Template, Shape, PackLayout]:
    """The words of a call, those of its shape, and how packed weights lie.

    With `waits`, weights are packed where each call says, and compared with the copy there.
    """
    plan = make_plan(key.cell, key.masks)
    shape = shape_of(key, forward_code(plan, key.bytes, target(), keep))
    rows = shape.rows
    in_place = not (waits or rows.ragged) and is_in_place(plan, rows.T, rows.B)
    _need_tiles(shape, in_place)
    arena, layout = Arena(), layout_of(key, shape)
    common = common_words(shape, cell_forward=shape.code.cell, in_place=int(in_place))
    common |= _scratch(shape, arena, in_place)
    if waits:
        common |= {"twin": layout.bytes, "trusted": CallAddress("trusted")}
    places = [arena.reserve_all(_sizes(shape, waits or in_place)) for _ in range(shape.D)]
    template = Template(arena, common, shape.D)
    shared_lists(template, shape)
    template.set_common("places", template.list_of(_panel_places(shape)))
    set_runs(template, runs_forward(shape))
    for d in range(shape.D):
        words = direction_words(template, shape, d) | places[d]
        finals = [CallAddress(f"final{s} {d}") for s in range(len(plan.state_names))]
        if waits:
            words |= {name: CallAddress(f"{name} {d}") for name in PACKED}
        words["gate_last"] = template.list_of([shape.gates[1][k] for k in plan.last])
        words["matrix_last"] = template.list_of([shape.widths.matrices[k] for k in plan.last])
        template.set_direction(d, words | {"final": template.list_of(finals)})
    return template, shape, layout


def _need_tiles(shape: Shape, in_place: bool) -> None:
    tiles, plan, blocks = shape.code.tiles, shape.plan, shape.H_row // shape.code.kind.size
    if in_place:
        chunks = shape.team.chunks
        for rows in (shape.rows.B // chunks, shape.rows.even_chunk(chunks)):
            tiles.need_lines(rows)
        return
    flat = part_sizes(len(plan.with_a) * blocks, WIDEST)
    panels = panel_vectors(blocks, shape.panel, len(plan.last), shape.widest)
    tiles.need(flat | panels | early_tiles(shape))


def _sizes(shape: Shape, waits: bool) -> dict[str, int]:
    """Bytes of what one direction works in."""
    plan, H_row = shape.plan, shape.H_row
    return ({} if waits else packed_sizes(shape)) | {
        "bias": len(plan.sums) * H_row,
        "unit_values": len(plan.vectors) * H_row,
        "state": len(plan.state_names) * shape.rows.B * H_row,
        "new": shape.rows.B * H_row,
    }


def _scratch(shape: Shape, arena: Arena, in_place: bool) -> dict[str, Any]:
    """What each thread works in: x of a block of steps, its sums, and a tile's chains."""
    rows, team = shape.rows, shape.team
    chunk, even = rows.widest_chunk(team.chunks), rows.even_chunk(team.chunks)
    pre_row = len(shape.plan.sums) * shape.H_row
    block = steps_in_block(rows.T, even, pre_row + shape.I_row, LEAST_ROWS)
    own = Arena()
    own.reserve(chunk * block * shape.I_row)
    pre = own.reserve(chunk * block * pre_row)
    vectors = max(1, shape.panel * len(shape.plan.last))
    lines = lines_forward(shape.plan) * shape.H_row  # after the rows of either
    operand_rows = own.reserve(chunk * shape.H_row + lines if shape.plan.computed else 0)
    high = chunk if in_place else min(HIGHEST, chunk)
    chains = own.reserve(high * vectors * shape.code.kind.size + lines)
    kind, widest = shape.code.kind, max(shape.I, shape.H)
    vectors = -(-chunk // kind.lanes) * widest + kind.lanes  # the last square may lie beyond
    turns = in_place and min(chunk, kind.lanes) > shape.code.tiles.line_height
    turned = own.reserve(vectors * kind.size if turns else 0)
    return {
        "block_steps": block, "pre": int(pre), "chains": int(chains), "scratch_size": own.bytes,
        "turned": int(turned),
        "operand_rows": int(operand_rows), "scratch": arena.reserve(team.threads * own.bytes),
    }  # fmt: skip


def _panel_places(shape: Shape) -> list[int]:
    """Bytes from the start of a panel's sums to where each of its vectors begins."""
    size, last = shape.code.kind.size, shape.plan.last
    return [
        k * shape.H_row + block * size for block in range(shape.panel if last else 0) for k in last
    ]
