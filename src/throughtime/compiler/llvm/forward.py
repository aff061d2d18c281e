"""The forward pass: rows of a batch carried through time, a thread for each chunk of rows.

pack; for my chunks: for blocks of steps:
    x of the block, gathered; W x + b for the whole block
    for steps: for panels of units: for tiles of rows:  U h, then the cell on its registers
"""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.frame import Frame, common, direction
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.machine import Machine
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.products import parts_of
from throughtime.compiler.llvm.steps import alive, for_chunks, take_states, time_of
from throughtime.compiler.llvm.team import denormals_flushed, thread_and_team
from throughtime.compiler.llvm.tile_sizes import PLACES, WIDEST

CHUNK = ("block", "d", "low", "high", "scratch")
"""Arguments of the functions that carry a chunk: its direction, its rows, this thread's scratch."""


def write_forward(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], product: Emit, pack: Emit,
    barrier: Emit, machine: Machine,
) -> Emit:  # fmt: skip
    """`forward(block)`: the region that every thread of the team runs."""
    step = _write_step(module, kind, copies)
    chunk = _write_chunk(module, kind, copies, product, step)
    e = Emit(module, "forward", kind, ("block",))
    c, block = common(e), e.given["block"]
    with denormals_flushed(e, machine):
        thread, team = thread_and_team(e)
        e.call(pack, block, thread, team)
        e.call(barrier, block, team)
        scratch = c["scratch"] + thread * c["scratch_size"]

        def run(d: Num, low: Num, high: Num) -> None:
            e.call(chunk, block, d, low, high, scratch)

        for_chunks(e, c, thread, team, run)
    e.done()
    return e


def _write_chunk(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], product: Emit, step: Emit
) -> Emit:
    """`chunk(...)`: some rows of one direction through all steps."""
    e = Emit(module, "chunk", kind, CHUNK, internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    block, low, high, rows = g["block"], g["low"], g["high"], g["high"] - g["low"]
    pre_row = c["sums"] * c["H_row"]
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        take_states(e, c, copies, own, e.word(f["start"] + s.index * 8), low, rows)
    pre = g["scratch"] + c["pre"]
    with e.loop(c["T"], step=c["block"]) as first:
        last = (first.index + c["block"]).least(c["T"])
        count = _gather(e, c, f, copies, first.index, last)
        e.call(product, block, f["bias"], 0, g["scratch"], c["I_row"], 0, f["W_pack"], 1, c["I"],
               pre, pre_row, count, c["with_a"] * (c["H_row"] // kind.size))  # fmt: skip
        alone = c["with_a"] * c["H_row"]
        e.call(copies["copy"], pre + alone, pre_row, f["bias"] + alone, 0, count,
               (pre_row - alone) // kind.bytes)  # fmt: skip
        with e.loop(last, e.number(0).value, start=first.index) as i:
            t, m = time_of(e, c, f, i.index), Num(e.b, i.values[0])
            R = alive(e, c, t, low, high)
            e.call(step, block, g["d"], low, R, g["scratch"], t, pre + m * pre_row)
            i.next = [(m + R).value]
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        e.call(copies["give"], e.word(f["final"] + s.index * 8), c["H"] * kind.bytes, own,
               c["H_row"], rows, c["H"], c["order"] + low * 8)  # fmt: skip
    e.done()
    return e


def _gather(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], first: Num, last: Num
) -> Num:  # fmt: skip
    """x of the steps first..last, one row behind the other; gives how many rows."""
    g = e.given
    with e.loop(last, e.number(0).value, start=first) as i:
        t, m = time_of(e, c, f, i.index), Num(e.b, i.values[0])
        R = alive(e, c, t, g["low"], g["high"])
        source = c["x"] + e.word(c["x_steps"] + t * 8)
        e.call(copies["take"], g["scratch"] + m * c["I_row"], c["I_row"], source, c["x_row"], R,
               c["I"], c["order"] + g["low"] * 8)  # fmt: skip
        i.next = [(m + R).value]
    return Num(e.b, i.values[0])


def _write_step(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`step(...)`: one step of `rows` rows of a chunk, from their sums so far."""
    names = ("block", "d", "low", "rows", "scratch", "t", "pre")
    e = Emit(module, "step", kind, names, internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    blocks = c["H_row"] // kind.size
    with parts_of(e, blocks, c["panel"]) as (first, some):
        V = some * c["with_u"]
        groups = ((V + WIDEST - 1) // WIDEST).most(1)
        height = e.word(c["heights"] + (V + groups - 1) // groups * 8)
        with parts_of(e, g["rows"], height) as (row, R):
            _panel(e, c, f, first, some, row, R)
    own = f["state"] + g["low"] * c["H_row"]
    new = f["new"] + g["low"] * c["H_row"]
    e.call(copies["copy"], own, c["H_row"], new, c["H_row"], g["rows"], c["H_row"] // kind.bytes)
    y = c["y"] + f["y_first"] + e.word(c["y_steps"] + g["t"] * 8)
    e.call(copies["give"], y, c["y_row"], new, c["H_row"], g["rows"], c["H"],
           c["order"] + g["low"] * 8)  # fmt: skip
    e.done()
    return e


def _panel(e: Emit, c: Frame, f: Frame, first: Num, some: Num, row: Num, R: Num) -> None:
    """U h of R rows and some unit blocks into the scratch, then the cell's own code on it."""
    g, size = e.given, e.kind.size
    pre_row, G = c["sums"] * c["H_row"], c["with_u"]
    column, b = first * size, g["low"] + row
    pre = g["pre"] + row * pre_row + column
    chains, chains_row = g["scratch"] + c["chains"], some * G * size
    state = f["state"] + b * c["H_row"]
    with parts_of(e, some * G, e.number(WIDEST)) as (group, V):
        e.call_at(
            e.word(c["tiles"] + (V * PLACES + R) * 8),
            pre, pre_row, c["places"] + group * 8, state, c["H_row"], 0,
            f["U_pack"] + (first * G + group) * (c["H"] * size), 1, c["H"],
            chains + group * size, chains_row,
        )  # fmt: skip
    n = e.word(c["offset"] + g["t"] * 8) + b
    e.call_at(
        c["cell_forward"], R, some, chains, chains_row, pre, pre_row, state + column, c["H_row"],
        c["state_plane"], f["new"] + b * c["H_row"] + column,
        f["saved"] + n * c["saved_row"] + column, c["saved_row"], f["vector"] + column, c["H_row"],
        c["H"],
    )  # fmt: skip
