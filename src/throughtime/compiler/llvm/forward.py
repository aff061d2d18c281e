"""The forward pass: rows of a batch carried through time.

pack; for my chunks: for blocks of steps:
    x of the block, gathered; W x + b for the whole block
    for steps: for panels of units: for tiles of rows:  U h, then the cell on its registers

Chunks of rows are carried side by side and never wait for each other. Where there are fewer chunks
than threads, several members share one: each has some panels of every step, and they meet once a
step. h lies in two places by turns, so that nobody writes what another still reads.
"""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.frame import Frame, common, direction
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.machine import Machine
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.phases import early_phases
from throughtime.compiler.llvm.products import parts_of
from throughtime.compiler.llvm.steps import alive, for_chunks, gather_x, take_states, time_of
from throughtime.compiler.llvm.team import (
    MEETING_SIZE,
    denormals_flushed,
    my_share,
    thread_and_team,
)
from throughtime.compiler.llvm.tile_sizes import PLACES, WIDEST

CHUNK = ("block", "d", "low", "high", "scratch", "shared", "member", "members", "counter")
"""Arguments of the functions that carry a chunk: its direction and rows, this thread's scratch and
that of the chunk's first member, which member this is and of how many, and where they meet."""


def write_forward(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], product: Emit, pack: Emit,
    barrier: Emit, machine: Machine,
) -> Emit:  # fmt: skip
    """`forward(block)`: the region that every thread of the team runs."""
    step = _write_step(module, kind, copies, product)
    chunk = _write_chunk(module, kind, copies, product, step, barrier)
    e = Emit(module, "forward", kind, ("block",))
    c, block = common(e), e.given["block"]
    with denormals_flushed(e, machine):
        thread, team = thread_and_team(e)
        e.call(pack, block, thread, team)
        e.call(barrier, block, c["counter"], team)
        members = (team // (c["D"] * c["chunks"])).least(c["members"]).most(1)
        task, member = thread // members, thread % members
        scratch = c["scratch"] + thread * c["scratch_size"]
        shared = c["scratch"] + (thread - member) * c["scratch_size"]

        def run(d: Num, low: Num, high: Num) -> None:
            counter = c["counter"] + (task + 1) * MEETING_SIZE
            e.call(chunk, block, d, low, high, scratch, shared, member, members, counter)

        for_chunks(e, c, task, team // members, run)
    e.done()
    return e


def _write_chunk(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], product: Emit, step: Emit,
    barrier: Emit,
) -> Emit:  # fmt: skip
    """`chunk(...)`: some rows of one direction through all steps."""
    e = Emit(module, "chunk", kind, CHUNK, internal=True)
    c, g = common(e), e.given
    f, low, high, pre = direction(e, g["d"]), g["low"], g["high"], g["shared"] + c["pre"]

    def meet(count: Num) -> None:
        with e.when(g["members"].compare(">", 1)):
            e.call(barrier, g["block"], g["counter"], count * g["members"])

    with e.when(g["member"].compare("==", 0)):
        _take_start(e, c, f, copies)
    with e.loop(c["T"], step=c["block"]) as first:
        last, blocks = (first.index + c["block"]).least(c["T"]), first.index // c["block"] + 1
        _begin_block(e, c, f, copies, product, first.index, last)
        meet(first.index + blocks)
        with e.loop(last, e.number(0).value, start=first.index) as i:
            t, m = time_of(e, c, f, i.index), Num(e.b, i.values[0])
            R = alive(e, c, t, low, high)
            places, sums = _places(c, f, low, i.index), pre + m * (c["sums"] * c["H_row"])
            e.call(step, *(g[n] for n in CHUNK[:-1]), R, t, sums, *places)
            meet(i.index + 1 + blocks)
            _give_output(e, c, f, copies, R, t, places[1])
            i.next = [(m + R).value]
    with e.when(g["member"].compare("==", 0)):
        _give_final(e, c, f, copies)
    e.done()
    return e


def _take_start(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit]) -> None:
    """The first states of a chunk's rows."""
    low, rows = e.given["low"], e.given["high"] - e.given["low"]
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        take_states(e, c, copies, own, e.word(f["start"] + s.index * 8), low, rows)


def _places(c: Frame, f: Frame, low: Num, i: Num) -> tuple[Num, Num]:
    """Where h of a chunk lies before the i-th step, and where it will lie after it."""
    places = [f[name] + low * c["H_row"] for name in ("state", "new")]
    return (
        (i % 2).choose("==", 0, places[0], places[1]),
        (i % 2).choose("==", 0, places[1], places[0]),
    )


def _begin_block(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], product: Emit, first: Num, last: Num
) -> None:
    """x of a block of steps, and this member's share of where its sums stand before h."""
    g, size = e.given, e.kind.size
    pre, pre_row = g["shared"] + c["pre"], c["sums"] * c["H_row"]
    count = gather_x(e, c, f, copies, first, last)
    begin, end = my_share(e, count, g["member"], g["members"])
    x, to, rows = g["scratch"] + begin * c["I_row"], pre + begin * pre_row, end - begin
    e.call(product, g["block"], f["bias"], 0, x, c["I_row"], 0, f["W_pack"], 1, c["I"], to,
           pre_row, rows, c["with_a"] * (c["H_row"] // size))  # fmt: skip
    alone = c["with_a"] * c["H_row"]
    e.call(copies["copy"], to + alone, pre_row, f["bias"] + alone, 0, rows,
           (pre_row - alone) // e.kind.bytes)  # fmt: skip


def _give_output(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], R: Num, t: Num, new: Num
) -> None:
    """This member's share of the rows that a step has given."""
    g = e.given
    begin, end = my_share(e, R, g["member"], g["members"])
    y = c["y"] + f["y_first"] + e.word(c["y_steps"] + t * 8)
    e.call(copies["give"], y, c["y_row"], new + begin * c["H_row"], c["H_row"], end - begin, c["H"],
           c["order"] + (g["low"] + begin) * 8)  # fmt: skip


def _give_final(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit]) -> None:
    """The last states of a chunk's rows."""
    g = e.given
    low, rows = g["low"], g["high"] - g["low"]
    last, _ = _places(c, f, low, c["T"])
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        source = s.index.choose("==", 0, last, own)
        e.call(copies["give"], e.word(f["final"] + s.index * 8), c["H"] * e.kind.bytes, source,
               c["H_row"], rows, c["H"], c["order"] + low * 8)  # fmt: skip


def _write_step(module: ir.Module, kind: Kind, copies: dict[str, Emit], product: Emit) -> Emit:
    """`step(...)`: this member's panels of one step, for `R` rows of a chunk."""
    names = (*CHUNK[:-1], "R", "t", "pre", "old", "new")
    e = Emit(module, "step", kind, names, internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    blocks, vector = c["H_row"] // kind.size, early_phases(e, c, f, product)
    with parts_of(e, blocks, c["panel"], (g["member"], g["members"])) as (first, some):
        V = some * c["last_u"]
        groups = ((V + WIDEST - 1) // WIDEST).most(1)
        height = e.word(c["heights"] + (V + groups - 1) // groups * 8)
        with parts_of(e, g["R"], height) as (row, R):
            _panel(e, c, f, vector, (first, some), (row, R))
    with e.when(g["member"].compare("==", 0)):  # rows that have ended, or not begun
        ended = g["R"] * c["H_row"]
        e.call(copies["copy"], g["new"] + ended, c["H_row"], g["old"] + ended, c["H_row"],
               g["high"] - g["low"] - g["R"], c["H_row"] // kind.bytes)  # fmt: skip
    e.done()
    return e


def _panel(
    e: Emit, c: Frame, f: Frame, vector: Num, units: tuple[Num, Num], rows: tuple[Num, Num]
) -> None:
    """U v of some rows and unit blocks into the scratch, then the cell's own code on it."""
    g, size, (first, some), (row, R) = e.given, e.kind.size, units, rows
    pre_row, G = c["sums"] * c["H_row"], c["last_u"]
    column, b = first * size, g["low"] + row
    pre = g["pre"] + row * pre_row + column
    chains, chains_row = g["scratch"] + c["chains"], some * G * size
    old = g["old"] + row * c["H_row"]
    with parts_of(e, some * G, e.number(WIDEST)) as (group, V):
        e.call_at(
            e.word(c["tiles"] + (V * PLACES + R) * 8),
            pre, pre_row, c["places"] + group * 8, vector + row * c["H_row"], c["H_row"], 0,
            f["U_pack"] + (first * G + group) * (c["H"] * size), 1, c["H"],
            chains + group * size, chains_row,
        )  # fmt: skip
    n = e.word(c["offset"] + g["t"] * 8) + b
    e.call_at(
        c["cell_forward"], R, some, chains, chains_row, pre, pre_row, old + column,
        f["state"] + b * c["H_row"] + column, c["H_row"], c["state_plane"],
        g["new"] + row * c["H_row"] + column, f["saved"] + n * c["saved_row"] + column,
        c["saved_row"], f["vector"] + column, c["H_row"], c["H"],
        c["inputs"] + n * c["inputs_row"] + column,
    )  # fmt: skip
