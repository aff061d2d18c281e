"""The forward pass: rows of a batch carried through time, their states with them.

pack; for my chunks: for blocks of steps:
    x of the block, gathered; W x + b for the whole block
    for steps: for panels of units: for tiles of rows:  U h, then the cell on its registers

Chunks of rows are carried side by side and never wait for each other. Where there are fewer chunks
than threads, several members share one: each has some panels of every step, and they meet once a
step. h lies in two places by turns, so that nobody writes what another still reads.

A vector that a phase multiplies and the step computed is written whole before its product begins.
The sums of all phases but the last grow where they begin, after x; the last phase is the panels.
"""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.abi import (
    CELL_FORWARD,
    PHASE_FORWARD,
    PLACES,
    TILE,
    Kind,
)
from throughtime.compiler.llvm.loops.rows import (
    alive,
    blocks_of,
    for_chunks,
    gather_x,
    give_states,
    give_traces,
    reset_share,
    run_at,
    state_width,
    take_states,
    time_of,
    write_reset,
)
from throughtime.compiler.llvm.loops.team import (
    Role,
    denormals_flushed,
    meet,
    my_share,
    thread_and_team,
)
from throughtime.compiler.llvm.product import (
    NEAR_BYTES,
    NextPanel,
    fetch_shared,
    parts_of,
    share_of,
)
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit, Frame, begin, common
from throughtime.compiler.runtime.machine import Machine


def take_start(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], reset: Emit) -> None:
    """The first states of a chunk's rows, a reset before the first step among them."""
    low, high = e.args["low"], e.args["high"]
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        start, width = e.word(f["start"], s.index), state_width(e, c, s.index)
        take_states(e, c, copies, (own, width), start, low, high - low)
    e.call(reset, **e.passed_on("block", "d", "low", "high"), i=0, h=f["state"],
           states=c["states"])  # fmt: skip


def h_places(c: Frame, f: Frame, low: Num, i: Num) -> tuple[Num, Num]:
    """Where h of a chunk lies before the i-th step, and where it will lie after it."""
    places = [f[name] + low * c["H_row"] for name in ("state", "new")]
    return (
        where((i % 2).compare("==", 0), places[0], places[1]),
        where((i % 2).compare("==", 0), places[1], places[0]),
    )


def give_output(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], R: Num, t: Num, new: Num
) -> Num:
    """This member's share of what a step has given.

    Gives 1 where other states than the output are traced, so that the members must meet, else 0.
    """
    _give_share(e, c, f, copies, R, t, new)
    give_traces(e, c, f, copies, R, t)
    return where(f["traces"].compare("!=", 0), 1, e.number(0))


def _give_share(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], R: Num, t: Num, new: Num
) -> None:
    """Some rows of the output, or some units of all rows.

    Resets change whole rows of it next, so with them a member gives the rows that it will reset.
    """
    g, lanes = e.args, e.kind.lanes
    whole = (R >= g["members"]) | f["resets"].compare("!=", 0)

    (low, high), (first, last) = (
        my_share(count, g["member"], g["members"]) for count in (R, blocks_of(e, c["out"]))
    )
    begin, end = where(whole, low, e.number(0)), where(whole, high, R)
    unit = where(whole, 0, first * lanes)
    stop = where(whole, c["out"], (last * lanes).least(c["out"]))
    y = c["y"] + f["y_first"] + e.word(c["y_steps"], t) + unit * e.kind.bytes
    source = new + begin * c["H_row"] + unit * e.kind.bytes
    e.call(copies["give"], to=y, to_row=c["y_row"], source=source, source_row=c["H_row"],
           rows=end - begin, count=stop - unit,
           order=c["order"] + (g["low"] + begin) * 8)  # fmt: skip


def give_final(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit]) -> None:
    """The last states of a chunk's rows."""
    low = e.args["low"]
    last, _ = h_places(c, f, low, c["T"])
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        source = where(s.index.compare("==", 0), last, own)
        give_states(e, c, copies, source, s.index, e.word(f["final"], s.index))


CHUNK = ("low", "high", "scratch", "shared", "member", "members")
"""Arguments of the functions that carry a chunk: its rows, this thread's scratch and
that of the chunk's first member, which member this is and of how many, and where they meet."""


def early_phases(e: Emit, c: Frame, f: Frame, product: Emit) -> Num:
    """In `step`: all phases but the last one's product; gives the rows that this multiplies."""
    g, pre_row = e.args, c["sums"] * c["H_row"]
    with e.loop(c["early"]) as i:
        run = run_at(e, c, i.index)
        operand = _operand(e, c, f, run)
        sums = g["pre"] + run["line"] * c["H_row"]
        vectors = run["count"] * blocks_of(e, run["width"])
        packed, size = f["U_early"] + run["packed_first"], vectors * (run["K"] * e.kind.size)
        # Blocks are written in whole vectors over the next one's first units, so none may start
        # from its own place.
        alone = run["blocks"] > 1
        bias = f["bias"] + run["line"] * c["H_row"]
        start = where(alone, bias, sums)
        start_row = where(alone, 0, pre_row)
        with e.loop(run["blocks"]) as b:
            to, of = (b.index * (run[name] * e.kind.bytes) for name in ("width", "K"))
            e.call(
                product, block=g["block"], start=start + to, start_row=start_row, A=operand + of,
                A_row=c["H_row"], A_part=0, B=packed + b.index * size, parts=1, K=run["K"],
                C=sums + to, C_row=pre_row, rows=g["R"], vectors=vectors, turned=g["t"] % 2,
                member=0, members=1,
            )  # fmt: skip
    return _operand(e, c, f, run_at(e, c, c["early"]))


def _operand(e: Emit, c: Frame, f: Frame, run: Frame) -> Num:
    """The rows that a run multiplies, computed where they are not there yet."""
    g = e.args
    operand = g["scratch"] + c["operand_rows"]
    n = e.word(c["offset"], g["t"]) + g["low"]
    with e.when(run["phase"].compare("!=", 0)):
        e.call_at(
            run["phase"], PHASE_FORWARD, rows=g["R"], pre=g["pre"], pre_row=c["sums"] * c["H_row"],
            old=g["old"], state=f["state"] + g["low"] * c["H_row"], H_row=c["H_row"],
            state_plane=c["state_plane"], to=operand, unit_values=f["unit_values"], H=c["H"],
            inputs=f["inputs"] + n * c["inputs_row"], widths=c["unit_widths"],
        )  # fmt: skip
    return where(run["has_operand"].compare("!=", 0), operand, g["old"])


def write_forward(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], products: tuple[Emit, Emit, Emit],
    pack: Emit, barrier: Emit, machine: Machine,
) -> Emit:  # fmt: skip
    """`forward(block)`: the region that every thread of the team runs."""
    step = _write_step(module, kind, copies, products)
    chunk = _write_chunk(module, kind, copies, products, step, barrier)
    e = Emit(module, "forward", kind, ("block",))
    c, block = common(e), e.args["block"]
    with denormals_flushed(e, machine):
        thread, team = thread_and_team(e)
        e.call(pack, block=block, thread=thread, team=team)
        e.call(barrier, block=block, counter=c["counter"], goal=team)
        role = Role.of(c, thread, team)
        scratch = c["scratch"] + thread * c["scratch_size"]
        shared = c["scratch"] + (thread - role.member) * c["scratch_size"]

        def run(d: Num, low: Num, high: Num) -> None:
            e.call(chunk, block=block, d=d, low=low, high=high, scratch=scratch, shared=shared,
                   member=role.member, members=role.members, counter=role.counter)  # fmt: skip

        for_chunks(e, c, role, run)
        e.call(barrier, block=block, counter=c["counter"], goal=team * 2)
    return e.done()


def _write_chunk(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], products: tuple[Emit, Emit, Emit],
    step: Emit, barrier: Emit,
) -> Emit:  # fmt: skip
    """`chunk(...)`: some rows of one direction through all steps."""
    reset = write_reset(module, kind, copies)
    e, c, f, g = begin(module, "chunk", kind, (*CHUNK, "counter"))
    low, high, pre = g["low"], g["high"], g["shared"] + c["pre"]

    with e.when(g["member"].compare("==", 0)):
        take_start(e, c, f, copies, reset)
    with e.loop(c["T"], e.number(0), step=(steps := c["block_steps"])) as first:
        last, blocks = (first.index + steps).least(c["T"]), first.index // steps + 1
        _begin_block(e, c, f, copies, products, first.index, last)
        meet(e, barrier, first.index + blocks + first.values[0])
        with e.loop(last, e.number(0), first.values[0], start=first.index) as i:
            t, (m, more) = time_of(c, f, i.index), i.values
            R, met = alive(e, c, t, low, high), i.index + 1 + blocks + more
            (old, new), sums = h_places(c, f, low, i.index), pre + m * (c["sums"] * c["H_row"])
            e.call(step, **e.passed_on("block", "d", *CHUNK), R=R, t=t, pre=sums, old=old, new=new)
            meet(e, barrier, met)
            traced = give_output(e, c, f, copies, R, t, new)
            again = reset_share(e, c, f, reset, R, i.index + 1, new).most(traced)
            with e.when(again.compare("!=", 0)):
                meet(e, barrier, met + 1)
            i.next = [m + R, more + again]
        first.next = [i.values[1]]
    with e.when(g["member"].compare("==", 0)):
        give_final(e, c, f, copies)
    return e.done()


def _begin_block(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], products: tuple[Emit, Emit, Emit],
    first: Num, last: Num,
) -> None:  # fmt: skip
    """x of a block of steps, and this member's share of where its sums stand before h: some of the
    rows, or of weights that are not packed some of the vectors, for all of them."""
    g, size = e.args, e.kind.size
    pre, pre_row = g["shared"] + c["pre"], c["sums"] * c["H_row"]
    count = gather_x(e, c, f, copies, first, last)
    begin, end = my_share(count, g["member"], g["members"])
    to, rows = pre + begin * pre_row, end - begin
    vectors = c["with_a"] * (c["H_row"] // size)
    with e.split(c["in_place"].compare("==", 0)) as (packed, lies):
        with packed:
            e.call(
                products[0], block=g["block"], start=f["bias"], start_row=0,
                A=g["scratch"] + begin * c["I_row"], A_row=c["I_row"], A_part=0, B=f["W_pack"],
                parts=1, K=c["I"], C=to, C_row=pre_row, rows=rows, vectors=vectors, turned=0,
                member=0, members=1,
            )  # fmt: skip
        with lies:
            _begin_in_place(e, c, f, products[1:], count, vectors)
    alone = c["with_a"] * c["H_row"]
    e.call(copies["copy"], to=to + alone, to_row=pre_row, source=f["bias"] + alone, source_row=0,
           rows=rows, count=(pre_row - alone) // e.kind.bytes)  # fmt: skip


def _begin_in_place(
    e: Emit, c: Frame, f: Frame, functions: tuple[Emit, ...], rows: Num, vectors: Num
) -> None:
    """In `_begin_block`: this member's vectors of the sums, by weights that lie as the user's."""
    g, size, (lines, turn_rows) = e.args, e.kind.size, functions
    blocks, pre = c["H_row"] // size, g["shared"] + c["pre"]
    begin, end = my_share(vectors, g["member"], g["members"])
    e.call(turn_rows, A=g["scratch"], A_row=c["I_row"], K=c["I"], rows=rows,
           **e.passed_on("block", "scratch"))  # fmt: skip
    with e.loop(end, start=begin) as v:
        gate = e.word(f["gate_a"], v.index // blocks)
        unit, at = v.index % blocks * e.kind.lanes, v.index * size
        e.call(
            lines, start=f["bias"] + at, start_row=0, A=g["scratch"], A_row=c["I_row"],
            K=c["I"], C=pre + at, C_row=c["sums"] * c["H_row"], rows=rows,
            **e.passed_on("block", "scratch"), **lines_of(e, c, f["W"], gate, unit, c["I"]),
        )  # fmt: skip


def _write_step(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], products: tuple[Emit, Emit, Emit]
) -> Emit:
    """`step(...)`: this member's panels of one step, for `R` rows of a chunk."""
    e, c, f, g = begin(module, "step", kind, (*CHUNK, "R", "t", "pre", "old", "new"))
    blocks, operand = c["H_row"] // kind.size, early_phases(e, c, f, products[0])
    with e.when(g["members"] > 1):
        fetch_shared(e, c)
    with e.when(c["in_place"].compare("!=", 0)):
        e.call(products[2], A=operand, A_row=c["H_row"], K=c["H"], rows=g["R"],
               **e.passed_on("block", "scratch"))  # fmt: skip
    mine = g["member"], g["members"]
    with parts_of(e, blocks, c["panel"], mine, turned=g["t"] % 2) as (first, some):
        V = some * c["last_u"]
        groups = ((V + c["widest"] - 1) // c["widest"]).most(1)
        height = e.word(c["heights"], (V + groups - 1) // groups)
        height = where(c["in_place"].compare("==", 0), height, g["R"].most(1))
        with parts_of(e, g["R"], height) as (row, R):
            _panel(e, c, f, products[1], operand, (first, some), (row, R))
    with e.when(g["member"].compare("==", 0)):  # rows that have ended, or not begun
        ended = g["R"] * c["H_row"]
        e.call(
            copies["copy"], to=g["new"] + ended, to_row=c["H_row"], source=g["old"] + ended,
            source_row=c["H_row"], rows=g["high"] - g["low"] - g["R"],
            count=c["H_row"] // kind.bytes,
        )  # fmt: skip
    return e.done()


def _multiply_packed(
    e: Emit, c: Frame, f: Frame, units: tuple[Num, Num], rows: tuple[Num, Num],
    words: dict[str, Num],
) -> None:  # fmt: skip
    """In `_panel`: the tiles of a panel, each of which fetches its part of the next one."""
    g, size, (first, some), (row, R), G = e.args, e.kind.size, units, rows, c["last_u"]
    panel, far = some * G * c["H"] * size, c["H_row"] * G * c["H"] > NEAR_BYTES
    mine = panel * g["members"]  # from one of this member's panels to the next
    chains = words.pop("C")
    with parts_of(e, some * G, c["widest"], turned=g["t"] % 2) as (group, V):
        tile = f["U_pack"] + (first * G + group) * (c["H"] * size)
        following = NextPanel.after(tile, V * c["H"] * size, mine, far, g["t"] % 2)
        e.call_at(
            e.word(c["tiles"], V * PLACES + R), TILE, places=c["places"] + group * 8,
            A_part=0, B=tile, B_step=V * size, parts=1, C=chains + group * size,
            **share_of(following, (row, R, g["R"]), V * size), **words,
        )  # fmt: skip


def _multiply_in_place(
    e: Emit, c: Frame, f: Frame, lines: Emit, units: tuple[Num, Num], words: dict[str, Num]
) -> None:
    """In `_panel`: its vectors, one by one, by weights that lie as the user's."""
    (first, some), G, start, chains = units, c["last_u"], words.pop("start"), words.pop("C")
    with e.loop(some * G) as v:
        unit, k = (first + v.index // G) * e.kind.lanes, v.index % G * 8
        matrix = e.word(f["matrices"], e.word(f["matrix_last"] + k))
        weights = lines_of(e, c, matrix, e.word(f["gate_last"] + k), unit, c["H"])
        place = e.word(c["places"], v.index)
        e.call(lines, start=start + place, C=chains + v.index * e.kind.size, **weights, **words,
               **e.passed_on("block", "scratch"))  # fmt: skip


def lines_of(e: Emit, c: Frame, matrix: Num, gate: Num, unit: Num, K: Num) -> dict[str, Num]:
    """The lines of a matrix that are a gate's units from one on, and how many there are."""
    line = gate.most(0) * c["H"] + unit
    return {"B": matrix + line * K * e.kind.bytes, "lines": c["H"] - unit}


def _panel(
    e: Emit, c: Frame, f: Frame, lines: Emit, operand: Num, units: tuple[Num, Num],
    rows: tuple[Num, Num],
) -> None:  # fmt: skip
    """U v of some rows and unit blocks into the scratch, then the cell's own code on it.

    Every other step begins with the tile that the step before has ended with: it is still near.
    Where all of U is not, each tile fetches its part of the panel that comes next.
    """
    g, size, (first, some), (row, R) = e.args, e.kind.size, units, rows
    pre_row, column, b = c["sums"] * c["H_row"], first * size, g["low"] + row
    pre = g["pre"] + row * pre_row + column
    chains, chains_row = g["scratch"] + c["chains"], some * c["last_u"] * size
    old = g["old"] + row * c["H_row"]
    words = {
        "start": pre, "start_row": pre_row, "A": operand + row * c["H_row"], "A_row": c["H_row"],
        "K": c["H"], "C": chains, "C_row": chains_row,
    }  # fmt: skip
    with e.split(c["in_place"].compare("==", 0)) as (packed, lies):
        with packed:
            _multiply_packed(e, c, f, units, rows, dict(words))
        with lies:
            _multiply_in_place(e, c, f, lines, units, words | {"rows": R})
    n = e.word(c["offset"], g["t"]) + b
    e.call_at(
        c["cell_forward"], CELL_FORWARD, rows=R, unit_blocks=some, chains=chains,
        chains_row=chains_row, pre=pre, pre_row=pre_row, old=old + column,
        state=f["state"] + b * c["H_row"] + column, state_row=c["H_row"],
        state_plane=c["state_plane"], new=g["new"] + row * c["H_row"] + column,
        saved=f["saved"] + n * c["saved_row"] + column, saved_row=c["saved_row"],
        unit_values=f["unit_values"] + column, H_row=c["H_row"], H=c["H"],
        inputs=f["inputs"] + n * c["inputs_row"] + column, widths=c["unit_widths"],
    )  # fmt: skip
