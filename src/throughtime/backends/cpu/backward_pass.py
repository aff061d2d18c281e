"""The backward pass of a call in one region of machine code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call, Gradients
from throughtime.backends.cpu.forward_pass import weight_words
from throughtime.backends.cpu.sizes import Arena, rows_of, steps, steps_in_block, team_for
from throughtime.backends.cpu.words import (
    Block,
    Job,
    addresses,
    common_words,
    contiguous,
    flops_of,
    gate_numbers,
    time_steps,
)
from throughtime.compiler.llvm import machine, threads
from throughtime.compiler.llvm.code import backward_code
from throughtime.compiler.plan import Plan, plan

LEAST_ROWS = 128
"""Rows of a block, so that sums over them are worth reading and writing the weight gradients."""


@dataclass(frozen=True)
class Found:
    """Where the region writes gradients, units and inputs padded to whole vectors.

    Attributes:
        x: (D, N, I), or None.
        W: (D, rows of weight_ih, I), or None like all of weights.
        U: (D, rows of weight_hh, H).
        sums: (D, sums and vectors, H), over all rows and steps.
        start: for each state (D, B, H).
    """

    x: Tensor | None
    W: Tensor | None
    U: Tensor | None
    sums: Tensor | None
    start: list[Tensor]


def run(
    call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], wants_x: bool,
    wants_weights: bool,
) -> Gradients:  # fmt: skip
    """Gradients by x, by the weights where they are wanted, and by the state at the start."""
    job = _job(contiguous(call))
    found = _room(job, wants_x, wants_weights)
    if job.rows.B:
        _carry(job, kept, d_results, found)
    weights = tuple(_weights(job, found, d) for d in range(call.directions))
    return Gradients(_by_x(job, found.x), weights, tuple(found.start))


def _job(call: Call) -> Job:
    found, target = plan(call.cell), machine.host()
    assert isinstance(found, Plan) and target is not None
    code = backward_code(found, call.x.element_size(), target)
    rows = rows_of(call)
    team = team_for(2 * flops_of(found, call, rows.N), call.directions, rows.B)
    return Job(call, found, code, rows, team)


def _room(job: Job, wants_x: bool, wants_weights: bool) -> Found:
    plan, call, bytes = job.plan, job.call, job.code.kind.bytes
    D, H, I = call.directions, job.H_row // bytes, job.I_row // bytes
    new, none = call.x.new_empty, call.x.new_zeros
    sums = len(plan.sums) + len(plan.vectors)
    return Found(
        new(D, job.rows.N, I) if wants_x else None,
        none(D, len(plan.with_a) * job.H, I) if wants_weights else None,
        none(D, len(plan.with_u) * job.H, H) if wants_weights else None,
        none(D, sums, H) if wants_weights else None,
        [new(D, job.rows.B, job.H) for _ in plan.state_names],
    )


def _carry(
    job: Job, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], found: Found
) -> None:
    call, rows, plan, kind = job.call, job.rows, job.plan, job.code.kind
    packed = call.batch_sizes is not None
    y, saved = kept
    sums = len(plan.sums) + len(plan.vectors)
    line = sums * job.H_row + kind.size
    block_steps = steps_in_block(
        rows.T, rows.B * call.directions, line + job.I_row + 3 * job.H_row, LEAST_ROWS
    )
    count = min(rows.N, block_steps * rows.B)
    arena = Arena()
    gates = len(plan.with_u)
    sizes = {
        "U_back": gates * job.H * job.H_row,
        "W_back": len(plan.with_a) * job.H * job.I_row if found.x is not None else 0,
        "bias": len(plan.sums) * job.H_row,
        "vector": len(plan.vectors) * job.H_row,
        "d_state": len(plan.state_names) * rows.B * job.H_row,
        "direct": rows.B * job.H_row,
        "x_block": count * job.I_row,
        "old_block": count * job.H_row,
        "y_block": count * job.H_row,
        "d_y_block": count * job.H_row,
        "d_sums": count * line,
    }
    places = [
        {name: arena.reserve(bytes) for name, bytes in sizes.items()}
        for _ in range(call.directions)
    ]
    memory = arena.taken()
    base = memory.data_ptr()
    x_array, x_steps, x_row = time_steps(call.x, rows, packed)
    y_array, y_steps, y_row = time_steps(y, rows, packed)
    d_y = d_results[0]
    if d_y is not None and d_y.stride(-1) != 1 and job.H > 1:
        d_y = d_y.contiguous()
    d_y_array, d_y_steps, d_y_row = (
        (*steps(rows.T, 0), 0) if d_y is None else time_steps(d_y, rows, packed)
    )
    d_final = [None if v is None else v.contiguous() for v in d_results[1:]]
    bounds = rows.bounds(job.team.chunks)
    common = common_words(
        job, cell_backward=job.code.cell, x=call.x.data_ptr(), x_steps=x_steps, x_row=x_row,
        y=y.data_ptr(), y_steps=y_steps, y_row=y_row, block=block_steps, packs=2,
        d_y_steps=d_y_steps, d_y_row=d_y_row,
        wants_x=int(found.x is not None), wants_weights=int(found.W is not None),
        reads_y=int(plan.reads_output),
    )  # fmt: skip
    common["d_y"] = common["zeros"] if d_y is None else d_y.data_ptr()
    block = Block(common, call.directions, 2 * 64 + call.directions * 64 + len(bounds) + 64)
    block.set_common("flat", block.list_of([v * kind.size for v in range(8)]))
    block.set_common("bounds", block.list_of(bounds))
    block.set_common("counter", block.list_of([0]))
    numbers_a, numbers_u = gate_numbers(plan, call.cell)
    for d, weights in enumerate(call.weights):
        words = {name: base + place for name, place in places[d].items()}
        words |= weight_words(weights)
        own = addresses([weights[n] for n in plan.vectors])
        start = [0] * len(d_final) if call.state is None else addresses([v[d] for v in call.state])
        words |= {
            "reverse": d,
            "y_first": d * y.stride(-2) * y.element_size(),
            "d_y_first": 0 if d_y is None else d * d_y.stride(-2) * d_y.element_size(),
            "own": block.list_of(own or [0]),
            "gate_a": block.list_of(numbers_a),
            "gate_u": block.list_of(numbers_u),
            "start": block.list_of(start),
            "d_final": block.list_of([0 if v is None else v[d].data_ptr() for v in d_final]),
            "d_start": block.list_of(addresses([v[d] for v in found.start])),
            "saved": saved[d].data_ptr(),
        }
        for name, v in (("d_x", found.x), ("d_W", found.W), ("d_U", found.U), ("d_bias", found.sums)):
            words[name] = 0 if v is None else v[d].data_ptr()
        block.set_direction(d, words)
    threads.call(job.code.region, block.address, job.team.threads, job.team.release_gil)


def _by_x(job: Job, found: Tensor | None) -> Tensor | None:
    """(D, N, padded I) to the gradient in x's own shape."""
    if found is None:
        return None
    x, rows = job.call.x, job.rows
    total = found[0] if len(found) == 1 else found[0] + found[1]
    total = total[:, : job.I]
    if job.call.lengths is None:
        return total.contiguous().view(x.shape)
    there = torch.from_numpy(np.arange(rows.B) < rows.alive[:, None])
    sorted_rows = total.new_zeros(x.shape)
    sorted_rows[there] = total
    return sorted_rows.index_copy(1, torch.from_numpy(rows.order), sorted_rows)


def _weights(job: Job, found: Found, d: int) -> dict[str, Tensor]:
    """Gradients of one direction's parameters by name; empty where none were wanted."""
    if found.W is None or found.U is None or found.sums is None:
        return {}
    plan, weights, sums = job.plan, job.call.weights[d], found.sums[d, :, : job.H]
    numbers_a, numbers_u = gate_numbers(plan, job.call.cell)
    grads: dict[str, Tensor] = {}
    for name in weights:
        if name == "weight_ih":
            grads[name] = found.W[d, :, : job.I].contiguous()
        elif name == "weight_hh":
            grads[name] = found.U[d, :, : job.H].contiguous()
        elif name == "bias_ih":
            grads[name] = _by_gates(sums, numbers_a)
        elif name == "bias_hh":
            grads[name] = _by_gates(sums, numbers_u)
        else:
            grads[name] = sums[len(plan.sums) + plan.vectors.index(name)].clone()
    return grads


def _by_gates(sums: Tensor, numbers: list[int]) -> Tensor:
    """The rows of sums in the order of their gates, one behind the other."""
    order = [k for _, k in sorted((n, k) for k, n in enumerate(numbers) if n >= 0)]
    return sums[order].reshape(-1)
