"""The forward pass of a call in one region of machine code."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from throughtime.backends.call import Call, Result
from throughtime.backends.cpu.given import GivenWords
from throughtime.backends.cpu.masks import plan_of
from throughtime.backends.cpu.memory import lend
from throughtime.backends.cpu.queue import Queue, carry
from throughtime.backends.cpu.rows import Rows, rows_of
from throughtime.backends.cpu.runs import early_tiles, packed_forward, runs_forward, set_runs
from throughtime.backends.cpu.shape import Key, Shape, key_of, shape_of
from throughtime.backends.cpu.sizes import (
    flops_of,
    part_address,
    steps_in_block,
    target,
    team_for,
    whole_vectors,
)
from throughtime.backends.cpu.template import Arena, Given, Template
from throughtime.backends.cpu.widths import widths_for
from throughtime.backends.cpu.words import (
    common_words,
    contiguous,
    direction_words,
    shared_lists,
)
from throughtime.compiler.llvm.code import forward_code
from throughtime.compiler.llvm.tile_sizes import WIDEST, panel_vectors, part_sizes
from throughtime.compiler.plan import Plan, plan
from throughtime.compiler.sweeps import lines_forward

HIGHEST = 12
"""Rows of the highest tile of any machine."""

LEAST_ROWS = 48
"""Rows of a block's input product, so that its tiles are full."""


def run(
    call: Call, keep: bool, y: Tensor | None = None, saved: Tensor | None = None,
    queue: Queue | None = None,
) -> tuple[Result, list[Tensor]]:  # fmt: skip
    """The result, its sequence in `y` if there is one, and with `keep` what backward needs.

    That is in the first rows of `saved`, if there is one. With a queue, all of it is there once
    the queue has run.
    """
    call = contiguous(call)
    found, rows = plan_of(call), rows_of(call)
    x, D = call.x, call.directions
    widths = call.cell.widths(call.hidden_size)
    if y is None:
        y = x.new_empty((*x.shape[:-1], D, widths[0]))
    if call.lengths is not None:
        y.zero_()
    final = [x.new_empty((D, rows.B, width)) for width in widths]
    shape = kept_shape(call, found)
    saved = None if not keep else lend(x, shape) if saved is None else saved[:, : shape[1]]
    if rows.B:
        _carry(call, found, rows, y, final, saved, queue)
    return Result((y,), tuple(final)), [] if saved is None else [saved]


def kept_shapes(call: Call) -> list[tuple[int, ...]]:
    """The shapes of what `run` keeps."""
    return [kept_shape(call, plan_of(call))]


def kept_shape(call: Call, found: Plan) -> tuple[int, ...]:
    """Of the saved values: directions, rows over all steps (padded ones too), values, units."""
    lanes = target().lanes(8 * call.x.element_size())
    units = whole_vectors(widths_for(call.cell, call.hidden_size).line, lanes)
    rows = call.x.shape[0] if call.batch_sizes is not None else call.x.shape[0] * call.x.shape[1]
    return (call.directions, rows, found.saved_size(units), units)


def _carry(
    call: Call, found: Plan, rows: Rows, y: Tensor, final: list[Tensor], saved: Tensor | None,
    queue: Queue | None,
) -> None:  # fmt: skip
    step_bytes = len(found.with_u) * call.hidden_size**2 * call.x.element_size()
    if found.own or not found.fused:  # members of a chunk meet once a step, and no oftener
        step_bytes = -1
    team = team_for(flops_of(found, call, rows.N), call.directions, rows.B, step_bytes)
    template, shape = _template(key_of(call, rows, team, y), saved is not None)
    given = GivenWords(call, found, rows, team.chunks, shape.packed_rows())
    addresses = given.addresses
    addresses["y"] = y.data_ptr()
    for d in range(call.directions):
        for s, v in enumerate(final):
            addresses[f"final{s} {d}"] = part_address(v, d)
        addresses[f"saved {d}"] = part_address(saved, d)
    held = call, final, saved, given
    carry(queue, template, shape.code.region, team, addresses, None, y, *held)


@functools.lru_cache(maxsize=128)
def _template(key: Key, keep: bool) -> tuple[Template, Shape]:
    found = plan(key.cell, key.masks)
    assert isinstance(found, Plan)
    shape = shape_of(key, forward_code(found, key.bytes, target(), keep))
    blocks = shape.H_row // shape.code.kind.size
    flat = part_sizes(len(found.with_a) * blocks, WIDEST)
    panels = panel_vectors(blocks, shape.panel, len(found.last))
    shape.code.tiles.need(flat | panels | early_tiles(shape))
    arena = Arena()
    common = common_words(shape, cell_forward=shape.code.cell) | _scratch(shape, arena)
    places = [arena.reserve_all(_sizes(shape)) for _ in range(shape.D)]
    template = Template(arena, common, shape.D)
    shared_lists(template, shape)
    template.set_common("places", template.list_of(_panel_places(shape)))
    set_runs(template, runs_forward(shape))
    for d in range(shape.D):
        words = direction_words(template, shape, d) | places[d]
        finals = [Given(f"final{s} {d}") for s in range(len(found.state_names))]
        words["gate_last"] = template.list_of([shape.gates[1][k] for k in found.last])
        words["matrix_last"] = template.list_of([shape.widths.matrices[k] for k in found.last])
        template.set_direction(d, words | {"final": template.list_of(finals)})
    return template, shape


def _sizes(shape: Shape) -> dict[str, int]:
    """Bytes of what one direction works in."""
    plan, H_row = shape.plan, shape.H_row
    return {
        "W_pack": len(plan.with_a) * H_row * shape.I,
        "U_pack": len(plan.last) * H_row * shape.H,
        "U_early": packed_forward(shape),
        "bias": len(plan.sums) * H_row,
        "vector": len(plan.vectors) * H_row,
        "state": len(plan.state_names) * shape.rows.B * H_row,
        "new": shape.rows.B * H_row,
    }


def _scratch(shape: Shape, arena: Arena) -> dict[str, Any]:
    """What each thread works in: x of a block of steps, its sums, and a tile's chains."""
    rows, team = shape.rows, shape.team
    chunk, even = rows.widest_chunk(team.chunks), rows.even_chunk(team.chunks)
    pre_row = len(shape.plan.sums) * shape.H_row
    block = steps_in_block(rows.T, even, pre_row + shape.I_row, LEAST_ROWS)
    own = Arena()
    own.reserve(chunk * block * shape.I_row)
    pre = own.reserve(chunk * block * pre_row)
    vectors = max(1, shape.panel * len(shape.plan.last))
    lines = lines_forward(shape.plan) * shape.H_row  # behind the rows of either
    rows_of_vector = own.reserve(chunk * shape.H_row + lines if shape.plan.own else 0)
    chains = own.reserve(HIGHEST * vectors * shape.code.kind.size + lines)
    return {
        "block": block, "pre": int(pre), "chains": int(chains), "scratch_size": own.bytes,
        "vector_rows": int(rows_of_vector), "scratch": arena.reserve(team.threads * own.bytes),
    }  # fmt: skip


def _panel_places(shape: Shape) -> list[int]:
    """Bytes from the start of a panel's sums to where each of its vectors begins."""
    size, last = shape.code.kind.size, shape.plan.last
    return [
        k * shape.H_row + block * size for block in range(shape.panel if last else 0) for k in last
    ]
