"""The forward pass of a call in one region of machine code."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.backends.call import Call, Result
from throughtime.backends.cpu.sizes import Arena, padded, rows_of, steps_in_block, team_for
from throughtime.backends.cpu.words import (
    Block,
    Job,
    addresses,
    common_words,
    contiguous,
    flops_of,
    gate_numbers,
    panel_places,
    time_steps,
)
from throughtime.compiler.llvm import machine, threads
from throughtime.compiler.llvm.code import forward_code
from throughtime.compiler.plan import Plan, plan

TILE_ROWS = 32
"""Rows of the highest tile, and more."""

LEAST_ROWS = 48
"""Rows of a block's input product, so that its tiles are full."""


def run(call: Call, keep: bool) -> tuple[Result, list[Tensor]]:
    """The result, and with `keep` what the backward pass needs beside it."""
    call = contiguous(call)
    job = _job(call)
    rows, D, H = job.rows, call.directions, job.H
    kind = {"dtype": call.x.dtype, "device": "cpu"}
    lead = call.x.shape[:-1]
    ragged = call.lengths is not None
    y = (torch.zeros if ragged else torch.empty)(*lead, D, H, **kind)
    final = [torch.empty(D, rows.B, H, **kind) for _ in job.plan.state_names]
    saved = torch.empty(kept_shape(call, job.plan), **kind) if keep else None
    if rows.B:
        _carry(job, y, final, saved)
    return Result((y,), tuple(final)), [] if saved is None else [saved]


def kept_shapes(call: Call) -> list[tuple[int, ...]]:
    """The shapes of what `run` keeps."""
    found = plan(call.cell)
    assert isinstance(found, Plan)
    return [kept_shape(call, found)]


def kept_shape(call: Call, found: Plan) -> tuple[int, ...]:
    """Of the saved values: directions, rows over all steps (padded ones too), values, units."""
    target = machine.host()
    assert target is not None
    lanes = target.lanes(8 * call.x.element_size())
    units = (call.hidden_size + lanes - 1) // lanes * lanes
    rows = call.x.shape[0] if call.batch_sizes is not None else call.x.shape[0] * call.x.shape[1]
    return (call.directions, rows, len(found.saved), units)


def _job(call: Call) -> Job:
    found, target = plan(call.cell), machine.host()
    assert isinstance(found, Plan) and target is not None
    code = forward_code(found, call.x.element_size(), target)
    rows = rows_of(call)
    team = team_for(flops_of(found, call, rows.N), call.directions, rows.B)
    return Job(call, found, code, rows, team)


def _carry(job: Job, y: Tensor, final: list[Tensor], saved: Tensor | None) -> None:
    call, rows, plan = job.call, job.rows, job.plan
    kind, packed = job.code.kind, call.batch_sizes is not None
    chunk = -(-rows.B // job.team.chunks)
    pre_row = len(plan.sums) * job.H_row
    block_steps = steps_in_block(rows.T, chunk, pre_row + job.I_row, LEAST_ROWS)
    arena, places = Arena(), {}
    gates = len(plan.with_u)
    pre = -(-chunk * block_steps * job.I_row // 64) * 64
    chains = pre + -(-chunk * block_steps * pre_row // 64) * 64
    scratch_size = chains + TILE_ROWS * max(1, job.panel * gates) * kind.size
    scratch_size = -(-scratch_size // 64) * 64
    scratch = arena.reserve(job.team.threads * scratch_size)
    if saved is None:  # every row saves to one place
        scrap = arena.reserve(job.saved_row)
    sizes = {
        "W_pack": len(plan.with_a) * job.H_row * job.I,
        "U_pack": gates * job.H_row * job.H,
        "bias": len(plan.sums) * job.H_row,
        "vector": len(plan.vectors) * job.H_row,
        "state": len(plan.state_names) * rows.B * job.H_row,
        "new": rows.B * job.H_row,
    }
    for d in range(call.directions):
        places[d] = {name: arena.reserve(bytes) for name, bytes in sizes.items()}
    memory = arena.taken()
    base = memory.data_ptr()
    x_array, x_steps, x_row = time_steps(call.x, rows, packed)
    y_array, y_steps, y_row = time_steps(y, rows, packed)
    bounds = rows.bounds(job.team.chunks)
    common = common_words(
        job, cell_forward=job.code.cell, x=call.x.data_ptr(), x_steps=x_steps, x_row=x_row,
        y=y.data_ptr(), y_steps=y_steps, y_row=y_row, block=block_steps, scratch=base + scratch,
        scratch_size=scratch_size, pre=pre, chains=chains, packs=1,
    )  # fmt: skip
    if saved is None:
        common["saved_row"] = 0
    block = Block(common, call.directions, 2 * 64 + call.directions * 64 + len(bounds) + 64)
    block.set_common("places", block.list_of(panel_places(job) or [0]))
    block.set_common("flat", block.list_of([v * kind.size for v in range(8)]))
    block.set_common("bounds", block.list_of(bounds))
    block.set_common("counter", block.list_of([0]))
    numbers_a, numbers_u = gate_numbers(plan, call.cell)
    for d, weights in enumerate(call.weights):
        found = {name: base + place for name, place in places[d].items()}
        found |= weight_words(weights)
        own = addresses([weights[n] for n in plan.vectors])
        start = [0] * len(final) if call.state is None else addresses([v[d] for v in call.state])
        found |= {
            "reverse": d,
            "y_first": d * y.stride(-2) * y.element_size(),
            "own": block.list_of(own or [0]),
            "gate_a": block.list_of(numbers_a),
            "gate_u": block.list_of(numbers_u),
            "start": block.list_of(start),
            "final": block.list_of(addresses([v[d] for v in final])),
            "saved": base + scrap if saved is None else saved[d].data_ptr(),
        }
        block.set_direction(d, found)
    threads.call(job.code.region, block.address, job.team.threads, job.team.release_gil)


def weight_words(weights) -> dict[str, int]:
    """Addresses of the parameters of one direction; 0 for what it has not."""
    names = {"W": "weight_ih", "U": "weight_hh", "W_bias": "bias_ih", "U_bias": "bias_hh"}
    return {w: weights[n].data_ptr() if n in weights else 0 for w, n in names.items()}
