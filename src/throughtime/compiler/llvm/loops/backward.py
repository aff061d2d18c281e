"""The backward pass: blocks of steps from the last to the first, two phases a block.

    pack; for blocks of steps:
        my chunks, step by step: the cell's derivative, of my rows; its members meet;
            dh = direct + U^T d_sums, my units of all rows; they meet
        all wait; my share of  dW += d_sums^T x,  dU += d_sums^T h,  db,  dx = W^T d_sums; all wait

The gradients of the sums live in one block that stays in cache; what was saved is never written.
Weight gradients are summed over rows in one order, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llvmlite import ir

from throughtime.compiler.llvm.abi import CELL_BACKWARD, COMMON, DIRECTION, OWN, Kind
from throughtime.compiler.llvm.loops.rows import (
    alive,
    blocks_of,
    first_row,
    for_chunks,
    give_states,
    is_multiplied,
    run_at,
    see,
    state_width,
    take_states,
    time_of,
    write_reset,
    write_reset_back,
    write_seen,
    write_take_traces,
)
from throughtime.compiler.llvm.loops.team import (
    Role,
    denormals_flushed,
    meet,
    my_share,
    thread_and_team,
)
from throughtime.compiler.llvm.loops.weight_gradients import (
    begin_sums,
    give_sums,
    line_size,
    write_weights,
)
from throughtime.compiler.llvm.values import Num, Truth, where
from throughtime.compiler.llvm.writer import Emit, Frame, begin, common, direction
from throughtime.compiler.runtime.machine import Machine


def write_backward(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], products: tuple[Emit, Emit, Emit],
    packs: tuple[Emit, Emit], meetings: tuple[Emit, Emit], machine: Machine,
) -> Emit:  # fmt: skip
    """`backward(block)`: the region that every thread of the team runs."""
    back = _write_back(module, kind, (*products[:2], meetings[0]))
    steps = _write_start(module, kind, copies), _write_gather(module, kind, copies), back
    weights = write_weights(module, kind, copies, *products)
    together = _write_together(module, kind, copies, steps, weights, packs[0], meetings[0])
    apart = _write_apart(module, kind, copies, steps, weights, packs[1], meetings)
    e = Emit(module, "backward", kind, ("block",))
    with denormals_flushed(e, machine):
        thread, team = thread_and_team(e)
        with e.split(_is_apart(e)) as (alone, meeting):
            for way, function in ((alone, apart), (meeting, together)):
                with way:
                    e.call(function, block=e.args["block"], thread=thread, team=team)
    return e.done()


def _is_apart(e: Emit) -> Truth:
    """Whether threads have all they need of their own, and write nothing but their shares."""
    c, f = common(e), direction(e, e.number(0))
    more = c["inputs_row"] + f["resets"] + f["norms"]
    return c["own_size"].compare("!=", 0) & more.compare("==", 0)


def _write_apart(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], steps: tuple[Emit, Emit, Emit],
    weights: Emit, vectors: Emit, meetings: tuple[Emit, Emit],
) -> Emit:  # fmt: skip
    """`apart(block, thread, team)`: one step, of which each thread computes all that its share of
    the products reads. To meet, and to wait for what another has written, would take longer."""
    e = Emit(module, "apart", kind, ("block", "thread", "team"), internal=True)
    c, thread, (start, gather, back) = common(e), e.args["thread"], steps
    (barrier, move_apart), block = meetings, e.args["block"]
    e.call(move_apart, block=block)
    _take_own(e, c)
    here: dict[str, Num] = {"block": block, "d": thread}
    low, high = e.word(c["bounds"]), e.word(c["bounds"], 1)
    e.call(vectors, **here)
    begin_sums(e, c, direction(e, thread), copies)
    e.call(start, **here, low=low, high=high)
    e.call(gather, **here, low=low, high=high, first=0, last=1)
    e.call(back, **here, low=low, high=high, first=0, last=1, chunk_low=low, chunk_high=high,
           thread=thread, member=thread, members=e.args["team"], counter=0)  # fmt: skip
    e.call(weights, **e.passed_on("block", "thread", "team"), own=thread, first=0, last=1)
    with e.when(c["wants_start"].compare("!=", 0)), e.loop(c["states"]) as s:
        _give_columns(e, c, copies, s.index, (low, high))
    give_sums(e, c, direction(e, thread), copies)
    e.call(barrier, block=block, counter=c["counter"], goal=e.args["team"])
    return e.done()


def _take_own(e: Emit, c: Frame) -> None:
    """In `apart`: this thread's words of the direction, which are the first one's but for OWN."""
    thread, first = e.args["thread"], direction(e, e.number(0))
    to = e.args["block"] + (thread * len(DIRECTION) + len(COMMON)) * 8
    with e.when(thread > 0):
        for i, name in enumerate(DIRECTION):
            word = first[name] + thread * c["own_size"] if name in OWN else first[name]
            e.b.store(word.value, e.pointer(to + i * 8))


def _give_columns(
    e: Emit, c: Frame, copies: dict[str, Emit], s: Num, rows: tuple[Num, Num]
) -> None:
    """In `apart`: the gradient by the s-th state at the start, this thread's columns of all rows;
    of the output they are those that its panels have given."""
    f, lanes, panels, (low, high) = direction(e, e.args["thread"]), e.kind.lanes, c["U_lies"], rows
    width = state_width(e, c, s)
    first, end = (
        my_share(blocks_of(e, width), panel, panels)[0] * lanes
        for panel in my_share(panels, e.args["thread"], e.args["team"])
    )
    source = f["d_state"] + s * c["state_plane"] + low * c["H_row"] + first * e.kind.bytes
    e.call(copies["give"], to=e.word(f["d_start"], s) + first * e.kind.bytes,
           to_row=width * e.kind.bytes, source=source, source_row=c["H_row"], rows=high - low,
           count=end.least(width) - first, order=c["order"] + low * 8)  # fmt: skip


def _write_together(
    module: ir.Module, kind: Kind, copies: dict[str, Emit], steps: tuple[Emit, Emit, Emit],
    weights: Emit, pack: Emit, barrier: Emit,
) -> Emit:  # fmt: skip
    """`together(block, thread, team)`: blocks of steps, between whose phases all threads meet."""
    (start, *of_block), finish = steps, _write_finish(module, kind, copies)
    e = Emit(module, "together", kind, ("block", "thread", "team"), internal=True)
    c, mine, team = common(e), e.passed_on("block", "thread", "team"), e.args["team"]
    role = Role.of(c, e.args["thread"], team)

    def wait(meeting: Num | int) -> None:
        e.call(barrier, block=e.args["block"], counter=c["counter"], goal=team * meeting)

    e.call(pack, **mine)
    for_chunks(e, c, role, _caller(e, start, role))
    with e.loop(c["D"]) as d:
        begin_sums(e, c, direction(e, d.index), copies)
    wait(1)
    with e.loop(c["T"], step=c["block_steps"]) as j:
        last, met = (j.index + c["block_steps"]).least(c["T"]), j.index // c["block_steps"] * 2 + 1
        for function in of_block:
            for_chunks(e, c, role, _caller(e, function, role, first=j.index, last=last))
        wait(met + 1)
        e.call(weights, **mine, own=0, first=j.index, last=last)
        wait(met + 2)
    for_chunks(e, c, role, _caller(e, finish, role))
    with e.loop(c["D"]) as d:
        give_sums(e, c, direction(e, d.index), copies)
    return e.done()


def _caller(e: Emit, function: Emit, role: Role, **steps: Num) -> Callable[..., None]:
    """Calls a function for this member's rows of a chunk and these steps."""

    def run(d: Num, low: Num, high: Num) -> None:
        begin, end = my_share(high - low, role.member, role.members)
        words = {"chunk_low": low, "chunk_high": high, "member": role.member,
                 "members": role.members, "counter": role.counter,
                 "thread": role.task * role.members + role.member}  # fmt: skip
        words = {name: v for name, v in words.items() if name in function.args}  # of `back` alone
        e.call(function, block=e.args["block"], d=d, low=low + begin, high=low + end, **steps,
               **words)  # fmt: skip

    return run


def _time(e: Emit, c: Frame, f: Frame, j: Num) -> tuple[Num, Num]:
    """The j-th step from the end: its place i in this direction, and its time t."""
    i = c["T"] - 1 - j
    return i, time_of(c, f, i)


def _write_start(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`start_back(...)`: gradients by the final states are where a chunk begins."""
    e, c, f, g = begin(module, "start_back", kind, ("low", "high"))
    with e.loop(c["states"]) as s:
        own = f["d_state"] + s.index * c["state_plane"] + g["low"] * c["H_row"]
        final, width = e.word(f["d_final"], s.index), state_width(e, c, s.index)
        take_states(e, c, copies, (own, width), final, g["low"], g["high"] - g["low"])
    return e.done()


def _write_finish(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`finish_back(...)`: what is left at the start of the sequence is the gradient there."""
    e, c, f, g = begin(module, "finish_back", kind, ("low", "high"))
    with e.when(c["wants_start"].compare("!=", 0)), e.loop(c["states"]) as s:
        own = f["d_state"] + s.index * c["state_plane"] + g["low"] * c["H_row"]
        give_states(e, c, copies, own, s.index, e.word(f["d_start"], s.index))
    return e.done()


STEPS = ("low", "high", "first", "last")
CHUNK = ("chunk_low", "chunk_high", "thread", "member", "members", "counter")


def _write_gather(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`gather_back(...)`: what a chunk's rows read in a block of steps, padded: x, h, y, d_y."""
    reset = write_reset(module, kind, copies)
    e, c, f, g = begin(module, "gather_back", kind, STEPS)
    low, high = g["low"], g["high"]
    before, order = first_row(e, c, f, g["first"], g["last"]), c["order"] + low * 8
    with e.loop(g["last"], start=g["first"]) as j:
        i, t = _time(e, c, f, j.index)
        R = alive(e, c, t, low, high)
        m = e.word(c["offset"], t) - before + low

        def take(name: str, block: str, row: str, count: str, first: Num | int) -> None:
            source = c[name] + first + e.word(c[f"{name}_steps"], t)
            e.call(copies["take"], to=f[block] + m * c[row], to_row=c[row], source=source,
                   source_row=c[f"{name}_row"], rows=R, count=c[count], order=order)  # fmt: skip

        with e.when(c["wants_weights"].compare("!=", 0)):
            take("x", "x_block", "I_row", "I", 0)
        with e.when(c["reads_y"].compare("!=", 0)):
            take("y", "y_block", "H_row", "out", f["y_first"])
        take("d_y", "d_y_block", "H_row", "out", f["d_y_first"])
        _gather_old(e, c, f, copies, reset, (i, t, m, R))
    return e.done()


def _gather_old(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], reset: Emit,
    place: tuple[Num, Num, Num, Num],
) -> None:  # fmt: skip
    """The old outputs of R rows at the i-th step, which is step t, from row m of the block on."""
    low, high, (i, t, m, R) = e.args["low"], e.args["high"], place
    order = c["order"] + low * 8
    # Rows that had a step before this one go on from its output, the others start here.
    inside = where(i > 0, where(f["reverse"].compare("!=", 0), t + 1, t - 1), 0)
    going = where(i > 0, alive(e, c, inside, low, high).least(R), 0)
    old = f["old_block"] + m * c["H_row"]
    y = c["y"] + f["y_first"] + e.word(c["y_steps"], inside)
    e.call(copies["take"], to=old, to_row=c["H_row"], source=y, source_row=c["y_row"], rows=going,
           count=c["out"], order=order)  # fmt: skip
    start = old + going * c["H_row"], c["out"]
    take_states(e, c, copies, start, e.word(f["start"]), low + going, R - going)
    e.call(reset, **e.passed_on("block", "d"), i=i, low=low, high=high, h=old - low * c["H_row"],
           states=1)  # fmt: skip


def _write_back(module: ir.Module, kind: Kind, functions: tuple[Emit, Emit, Emit]) -> Emit:
    """`back(...)`: the steps of a block, from the last to the first, for a member's rows."""
    reset_back, seen = write_reset_back(module, kind), write_seen(module, kind)
    take_traces = write_take_traces(module, kind)
    e, c, f, g = begin(module, "back", kind, (*STEPS, *CHUNK))
    low = g["low"]
    before = first_row(e, c, f, g["first"], g["last"])
    d_row = line_size(c, kind)
    with e.loop(g["last"], start=g["first"]) as j:
        i, t = _time(e, c, f, j.index)
        R, n = _rows_at(e, c, t, low, g["high"])
        e.call(take_traces, **e.passed_on("block", "d", "low"), R=R, t=t)
        see(e, c, f, seen, (R, n, n - before))
        phases_back(e, c, f, functions, StepBack(j.index, t, before, d_row))
        e.call(reset_back, **e.passed_on("block", "d", "low", "high"), i=i)
    return e.done()


class StepBack(NamedTuple):
    """A step of a chunk.

    Attributes:
        j, t: its number from the end, and its time.
        before: rows over all steps before those of its block.
        d_row: bytes from row to row of the gradients by sums.
    """

    j: Num
    t: Num
    before: Num
    d_row: Num


def phases_back(
    e: Emit, c: Frame, f: Frame, functions: tuple[Emit, Emit, Emit], step: StepBack
) -> None:
    """In `back`: the phases of a step, the last first, each the cell's derivative, of this member's
    rows, and its product, of all rows of the chunk.

    Args:
        functions: C = start + A B, the same for a matrix as it lies, and the barrier.
    """
    (*products, barrier), runs = functions, c["early"] + 1
    with e.loop(runs) as i:
        run, met = run_at(e, c, i.index), (step.j * runs + i.index) * 2
        with e.when(run["phase"].compare("!=", 0)):
            _derivative(e, c, f, run, step)
        _meet(e, barrier, met + 1)
        with e.when(is_multiplied(c, run, c["T"] - 1 - step.j)):
            _product_back(e, c, f, products, run, step)
        _meet(e, barrier, met + 2)


def _meet(e: Emit, barrier: Emit, count: Num) -> None:
    """In `back`: the count-th meeting of the members, unless they never meet."""
    with e.when(e.args["counter"].compare("!=", 0)):
        meet(e, barrier, count)


def _rows_at(e: Emit, c: Frame, t: Num, low: Num, high: Num) -> tuple[Num, Num]:
    """How many of the rows low..high a step has, and the first one's number over all steps."""
    return alive(e, c, t, low, high), e.word(c["offset"], t) + low


def _derivative(e: Emit, c: Frame, f: Frame, run: Frame, step: StepBack) -> None:
    """Gradients by the sums of a phase, and by what its equations read besides them."""
    low, line, d_row = e.args["low"], c["H_row"], step.d_row
    R, n = _rows_at(e, c, step.t, low, e.args["high"])
    m = n - step.before
    e.call_at(
        run["phase"], CELL_BACKWARD, rows=R, saved=f["saved"] + n * c["saved_row"],
        saved_row=c["saved_row"], y=f["y_block"] + m * line, old=f["old_block"] + m * line,
        d_y=f["d_y_block"] + m * line, d_state=f["d_state"] + low * line,
        state_plane=c["state_plane"], direct=f["direct"] + low * line,
        d_sums=f["d_sums"] + m * d_row, d_sums_row=d_row, unit_values=f["unit_values"],
        H_row=line, H=c["H"], d_operands=f["d_operand_rows"] + low * line,
        operand_plane=c["operand_plane"], operand_block=f["operand_block"] + m * line,
        operand_block_plane=c["operand_block_plane"], inputs=f["inputs"] + n * c["inputs_row"],
        d_inputs=f["d_inputs"] + n * c["inputs_row"], widths=c["unit_widths"],
    )  # fmt: skip


def _product_back(
    e: Emit, c: Frame, f: Frame, products: Sequence[Emit], run: Frame, step: StepBack
) -> None:
    """Gradients by what a run's sums multiply, this member's panels of them."""
    low, line, d_row = e.args["chunk_low"], c["H_row"], step.d_row
    R, n = _rows_at(e, c, step.t, low, e.args["chunk_high"])
    m = n - step.before
    operand = f["d_operand_rows"] + low * line + run["slot"] * c["operand_plane"]
    computed, begins = (run[name].compare("!=", 0) for name in ("has_operand", "begins"))
    to = where(computed, operand, f["d_state"] + low * line)
    fresh = where(computed, c["zeros"], f["direct"] + low * line)
    start = where(begins, fresh, to)
    start_row = where(begins & computed, 0, line)
    source, packed = f["d_sums"] + m * d_row + run["line"] * line, f["U_back"] + run["packed_first"]
    size = run["count"] * run["width"] * blocks_of(e, run["K"]) * e.kind.size
    words = {"start_row": start_row, "A_row": d_row, "A_part": line, "parts": run["count"],
             "K": run["width"], "C_row": line, "rows": R,
             **e.passed_on("block", "member", "members")}  # fmt: skip
    with e.split(c["U_lies"].compare("!=", 0)) as (lies, panels):
        with lies:
            e.call(
                products[1], start=start, A=source, C=to, **words,
                B=e.word(f["matrices"], run["matrix"]), gate=f["gate_u"] + run["line"] * 8,
                columns=run["K"], panels=c["U_lies"], thread=e.args["thread"],
            )  # fmt: skip
        with panels, e.loop(run["blocks"]) as b:
            lines, columns = (b.index * (run[name] * e.kind.bytes) for name in ("width", "K"))
            e.call(
                products[0], start=start + columns, A=source + lines, B=packed + b.index * size,
                C=to + columns, vectors=blocks_of(e, run["K"]), turned=step.t % 2, **words,
            )  # fmt: skip
