"""The backward pass: blocks of steps from the last to the first, two phases a block.

    pack; for blocks of steps:
        my chunks, step by step: the cell's derivative, then dh = direct + U^T d_sums
        all wait; my share of  dW += d_sums^T x,  dU += d_sums^T h,  db,  dx = W^T d_sums; all wait

The gradients of the sums live in one block that stays in cache; what was saved is never written.
Weight gradients are summed over rows in one order, whatever the number of threads.
"""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.block import Frame, common, direction
from throughtime.compiler.llvm.emit import Emit, Kind, Num
from throughtime.compiler.llvm.forward import alive, for_chunks, take_states, time_of
from throughtime.compiler.llvm.machine import Machine
from throughtime.compiler.llvm.team import denormals_flushed, my_share, thread_and_team


def write_backward(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], products: tuple[Emit, Emit],
    pack: Emit, barrier: Emit, machine: Machine,
) -> Emit:  # fmt: skip
    """`backward(block)`: the region that every thread of the team runs."""
    product, column_product = products
    start, back = _write_start(module, kind, copies), _write_back(module, kind, product)
    finish = _write_finish(module, kind, copies)
    gather = _write_gather(module, kind, copies)
    sums = _write_sums(module, kind)
    weights = _write_weights(module, kind, product, column_product, sums)
    e = Emit(module, "backward", kind, ("block",))
    c, block = common(e), e.given["block"]
    with denormals_flushed(e, machine):
        thread, team = thread_and_team(e)
        e.call(pack, block, thread, team)
        for_chunks(e, c, thread, team, lambda d, low, high: e.call(start, block, d, low, high))
        with e.when(thread.compare("==", 0)), e.loop(c["D"]) as d:
            lines = (c["sums"] + c["vectors"]) * (c["H_row"] // kind.bytes)
            e.call(copies["copy"], direction(e, d.index)["d_bias"], kind.size, c["zeros"], 0,
                   lines // kind.lanes, kind.lanes)  # fmt: skip
        e.call(barrier, block, team)
        with e.loop(c["T"], team.value, step=c["block"]) as j:
            last = (j.index + c["block"]).least(c["T"])
            goal = Num(e.b, j.values[0])

            def run(d: Num, low: Num, high: Num) -> None:
                e.call(gather, block, d, low, high, j.index, last)
                e.call(back, block, d, low, high, j.index, last)

            for_chunks(e, c, thread, team, run)
            e.call(barrier, block, goal + team)
            e.call(weights, block, thread, team, j.index, last)
            e.call(barrier, block, goal + team * 2)
            j.next = [(goal + team * 2).value]
        for_chunks(e, c, thread, team, lambda d, low, high: e.call(finish, block, d, low, high))
        with e.when(thread.compare("==", 0)), e.loop(c["D"]) as d:
            _give_sums(e, c, direction(e, d.index), copies)
    e.done()
    return e


def _first_row(e: Emit, c: Frame, f: Frame, j: Num, last: Num) -> Num:
    """Rows before those of the steps j..last, counted from the sequence's end in this direction."""
    t = f["reverse"].choose("!=", 0, j, c["T"] - last)
    return e.word(c["offset"] + t * 8)


def _time(e: Emit, c: Frame, f: Frame, j: Num) -> tuple[Num, Num]:
    """The j-th step from the end: its place i in this direction, and its time t."""
    i = c["T"] - 1 - j
    return i, time_of(e, c, f, i)


def _write_start(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`start_back(...)`: gradients by the final states are where a chunk begins."""
    e = Emit(module, "start_back", kind, ("block", "d", "low", "high"), internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    with e.loop(c["states"]) as s:
        own = f["d_state"] + s.index * c["state_plane"] + g["low"] * c["H_row"]
        final = e.word(f["d_final"] + s.index * 8)
        take_states(e, c, copies, own, final, g["low"], g["high"] - g["low"])
    e.done()
    return e


def _write_finish(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`finish_back(...)`: what is left at the start of the sequence is the gradient there."""
    e = Emit(module, "finish_back", kind, ("block", "d", "low", "high"), internal=True)
    c, g = common(e), e.given
    f, line = direction(e, g["d"]), c["H"] * kind.bytes
    with e.loop(c["states"]) as s:
        own = f["d_state"] + s.index * c["state_plane"] + g["low"] * c["H_row"]
        e.call(copies["give"], e.word(f["d_start"] + s.index * 8), line, own, c["H_row"],
               g["high"] - g["low"], c["H"], c["order"] + g["low"] * 8)  # fmt: skip
    e.done()
    return e


STEPS = ("block", "d", "low", "high", "first", "last")


def _write_gather(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`gather_back(...)`: what a chunk's rows read in a block of steps, padded: x, h, y, d_y."""
    e = Emit(module, "gather_back", kind, STEPS, internal=True)
    c, g = common(e), e.given
    f, low, high = direction(e, g["d"]), g["low"], g["high"]
    before, order = _first_row(e, c, f, g["first"], g["last"]), c["order"] + low * 8
    with e.loop(g["last"], start=g["first"]) as j:
        i, t = _time(e, c, f, j.index)
        R = alive(e, c, t, low, high)
        m = e.word(c["offset"] + t * 8) - before + low

        def take(name: str, block: str, row: str, count: str, first: Num | int) -> None:
            source = c[name] + first + e.word(c[f"{name}_steps"] + t * 8)
            e.call(copies["take"], f[block] + m * c[row], c[row], source, c[f"{name}_row"], R,
                   c[count], order)  # fmt: skip

        with e.when(c["wants_weights"].compare("!=", 0)):
            take("x", "x_block", "I_row", "I", 0)
        with e.when(c["reads_y"].compare("!=", 0)):
            take("y", "y_block", "H_row", "H", f["y_first"])
        take("d_y", "d_y_block", "H_row", "H", f["d_y_first"])
        # Rows that had a step before this one go on from its output, the others start here.
        past = f["reverse"].choose("!=", 0, t + 1, t - 1)
        inside = i.choose(">", 0, past, 0)
        going = i.choose(">", 0, alive(e, c, inside, low, high).least(R), 0)
        old = f["old_block"] + m * c["H_row"]
        y = c["y"] + f["y_first"] + e.word(c["y_steps"] + inside * 8)
        e.call(copies["take"], old, c["H_row"], y, c["y_row"], going, c["H"], order)
        take_states(e, c, copies, old + going * c["H_row"], e.word(f["start"]), low + going,
                    R - going)  # fmt: skip
    e.done()
    return e


def _write_back(module: ir.Module, kind: Kind, product: Emit) -> Emit:
    """`back(...)`: the steps of a block, from the last to the first, for a chunk."""
    e = Emit(module, "back", kind, STEPS, internal=True)
    c, g = common(e), e.given
    f, low = direction(e, g["d"]), g["low"]
    before = _first_row(e, c, f, g["first"], g["last"])
    d_row = (c["sums"] + c["vectors"]) * c["H_row"] + kind.size
    with e.loop(g["last"], start=g["first"]) as j:
        _, t = _time(e, c, f, j.index)
        R = alive(e, c, t, low, g["high"])
        n = e.word(c["offset"] + t * 8) + low
        m = n - before
        d_state, direct = f["d_state"] + low * c["H_row"], f["direct"] + low * c["H_row"]
        d_sums = f["d_sums"] + m * d_row
        e.call_at(
            c["cell_backward"], R, f["saved"] + n * c["saved_row"], c["saved_row"],
            *(f[name] + m * c["H_row"] for name in ("y_block", "old_block", "d_y_block")),
            d_state, c["state_plane"], direct, d_sums, d_row, f["vector"], c["H_row"], c["H"],
        )  # fmt: skip
        e.call(product, g["block"], direct, c["H_row"], d_sums + c["first_u"] * c["H_row"], d_row,
               c["H_row"], f["U_back"], c["with_u"], c["H"], d_state, c["H_row"], R,
               c["H_row"] // kind.size)  # fmt: skip
    e.done()
    return e


def _write_weights(
    module: ir.Module, kind: Kind, product: Emit, column_product: Emit, sums: Emit
) -> Emit:
    """`weights_back(...)`: this thread's share of what a block of steps says of W, U, b and x."""
    names = ("block", "thread", "team", "first", "last")
    e = Emit(module, "weights_back", kind, names, internal=True)
    c, g = common(e), e.given
    mine = g["thread"], g["team"]
    d_row = (c["sums"] + c["vectors"]) * c["H_row"] + kind.size
    with e.loop(c["D"]) as d:
        f = direction(e, d.index)
        before = _first_row(e, c, f, g["first"], g["last"])
        top = f["reverse"].choose("!=", 0, g["last"], c["T"] - g["first"]) - 1
        count = e.word(c["offset"] + top * 8) + e.word(c["rows"] + top * 8) - before
        with e.when(c["wants_x"].compare("!=", 0)):
            low, high = my_share(e, count, *mine)
            e.call(product, g["block"], c["zeros"], 0, f["d_sums"] + low * d_row, d_row, c["H_row"],
                   f["W_back"], c["with_a"], c["H"], f["d_x"] + (before + low) * c["I_row"],
                   c["I_row"], high - low, c["I_row"] // kind.size)  # fmt: skip
        with e.when(c["wants_weights"].compare("!=", 0)):
            for gates, first, number, to, row, block in (
                ("gate_a", e.number(0), c["with_a"], "d_W", "I_row", "x_block"),
                ("gate_u", c["first_u"], c["with_u"], "d_U", "H_row", "old_block"),
            ):
                low, high = my_share(e, number * c["H"], *mine)
                with e.loop(number) as q:
                    _weight(e, c, f, column_product, count, d_row,
                            (first + q.index, q.index * c["H"], low, high),
                            (gates, to, row, block))  # fmt: skip
            columns = (c["sums"] + c["vectors"]) * (c["H_row"] // kind.size)
            low, high = my_share(e, columns, *mine)
            e.call(sums, f["d_bias"] + low * kind.size, f["d_sums"] + low * kind.size, d_row, count,
                   high - low)  # fmt: skip
    e.done()
    return e


def _weight(
    e: Emit, c: Frame, f: Frame, column_product: Emit, count: Num, d_row: Num,
    place: tuple[Num, Num, Num, Num], names: tuple[str, str, str, str],
) -> None:  # fmt: skip
    """The lines low..high of a weight gradient that belong to one sum; the first block begins it."""
    k, line, low, high = place
    gates, to, row, block = names
    size = e.kind.size
    start, stop = low.most(line), high.least(line + c["H"])
    unit = start - line
    gate = e.word(f[gates] + k * 8)
    address = f[to] + (gate * c["H"] + unit) * c[row]
    begins = e.given["first"].compare("==", 0)
    source = Num(e.b, e.b.select(begins, c["zeros"].value, address.value))
    source_row = Num(e.b, e.b.select(begins, e.number(0).value, c[row].value))
    with e.when(stop.compare(">", start)):
        e.call(column_product, e.given["block"], source, source_row,
               f["d_sums"] + k * c["H_row"] + unit * e.kind.bytes, d_row, f[block], c[row], count,
               address, c[row], stop - start, c[row] // size)  # fmt: skip


def _write_sums(module: ir.Module, kind: Kind) -> Emit:
    """`column_sums(to, source, row, rows, vectors)`: adds every column's sum over the rows."""
    e = Emit(module, "column_sums", kind, ("to", "source", "row", "rows", "vectors"), internal=True)
    g = e.given
    with e.loop(g["vectors"]) as v:
        column = v.index * kind.size
        with e.loop(g["rows"], e.load(g["to"] + column)) as n:
            value = e.load(g["source"] + column + g["row"] * n.index)
            n.next = [e.b.fadd(n.values[0], value)]
        e.store(n.values[0], g["to"] + column)
    e.done()
    return e


def _give_sums(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit]) -> None:
    """Sums over all rows and steps, to the biases and vectors they are the gradients of."""
    with e.when(c["wants_weights"].compare("!=", 0)):
        with e.loop(c["sums"]) as k:
            source = f["d_bias"] + k.index * c["H_row"]
            for gates, to in (("gate_a", "d_W_bias"), ("gate_u", "d_U_bias")):
                gate = e.word(f[gates] + k.index * 8)
                with e.when(e.b.and_(gate.compare(">=", 0), f[to].compare("!=", 0))):
                    _give_line(e, c, copies, f[to] + gate * c["H"] * e.kind.bytes, source)
        with e.loop(c["vectors"]) as v:
            source = f["d_bias"] + (c["sums"] + v.index) * c["H_row"]
            _give_line(e, c, copies, e.word(f["d_own"] + v.index * 8), source)


def _give_line(e: Emit, c: Frame, copies: dict[str, Emit], to: Num, source: Num) -> None:
    e.call(copies["give"], to, 0, source, 0, 1, c["H"], c["zeros"])
