"""Rows of numbers at the steps of a chunk: their units, copied, reset, recorded as traces, clipped.

Rows are copied between users' tensors and buffers padded to whole vectors. Before a step some rows'
states go back to where a reset says, and gradients flow to there. Sequences of the states besides
the output are written forward, and their gradients taken in backward:

    forward, after a step:       trace_s[t] = s_t
    backward, before it:         d_s += d_trace_s[t]

Before a step is gone back over, the norms of each row's gradients by the new states are seen, and
clipped to c:

    n_s = || dL/ds ||  for each state s;  all of them times c / n where n = sqrt(sum n_s^2) > c

Norms are those before clipping. Squares are summed in float64: no gradient that a number can hold
overflows in them.

A step without resets costs a look at how many there are; a call without any resets or traces, a
look at one word for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir

from throughtime.compiler.llvm.abi import RESETS, RUN, TRACE, Kind
from throughtime.compiler.llvm.loops.team import Role, my_share
from throughtime.compiler.llvm.values import I64, Mask, Num, Real, Truth, Vector, sqrt, where
from throughtime.compiler.llvm.writer import POINTER, VOID, Emit, Frame, begin
from throughtime.compiler.plan import Plan


def lanes_below(e: Emit, count: Num) -> Mask:
    """In which lanes the lane's number is below count."""
    lanes = e.kind.lanes
    whole = ir.VectorType(I64, lanes)
    undefined = whole(ir.Undefined)
    first = e.b.insert_element(undefined, count.value, ir.IntType(32)(0))
    every = e.b.shuffle_vector(first, undefined, ir.VectorType(ir.IntType(32), lanes)([0] * lanes))
    return Mask(e.b, e.b.icmp_signed("<", whole(list(range(lanes))), every))


def load_part(e: Emit, address: Num, left: Num) -> Vector:
    """A vector of which `left` numbers are there; zeros in the place of the rest."""

    def some() -> Vector:
        mask, zeros = lanes_below(e, left).value, e.constant(0)
        function = e.masked("load", zeros.kind, [POINTER, mask.type, zeros.kind])
        return zeros.like(e.b.call(function, [e.pointer(address), mask, zeros.value]))

    return e.choose(left >= e.kind.lanes, lambda: e.load(address), some)


def store_part(e: Emit, value: Vector, address: Num, left: Num) -> None:
    """Write a vector of which `left` numbers have a place."""
    with e.split(left >= e.kind.lanes) as (whole, part):
        with whole:
            e.store(value, address)
        with part:
            mask = lanes_below(e, left).value
            function = e.masked("store", VOID, [value.kind, POINTER, mask.type])
            e.b.call(function, [value.value, e.pointer(address), mask])


def blocks_of(e: Emit, units: Num) -> Num:
    """How many vectors so many units fill."""
    return (units + e.kind.lanes - 1) // e.kind.lanes


def units_of(e: Emit, plan: Plan) -> dict[str, Num]:
    """How many units each width has; arguments of the function are H and a list, `widths`."""
    names = plan.widths.names
    g = e.args
    return {names[0]: g["H"]} | {w: e.word(g["widths"], i) for i, w in enumerate(names[1:], 1)}


def sections(e: Emit, plan: Plan, blocks: Num) -> Iterator[tuple[str, Num, Num]]:
    """For each width its name, how many units it has, and of how many blocks: `blocks`, which may
    be a part of a step's, where widths are all the same."""
    for name, units in units_of(e, plan).items():
        yield name, units, blocks if plan.widths.even else blocks_of(e, units)


def run_at(e: Emit, c: Frame, i: Num) -> Frame:
    """The i-th run, in the order in which they are computed."""
    return Frame(e, c["runs"] + i * (8 * len(RUN)), RUN)


def is_multiplied(c: Frame, run: Frame, i: Num) -> Truth:
    """Whether U^T d_sums of a run is asked for at the i-th step: what the first step says of the
    old output is the gradient by the start, and nothing else."""
    inside = run["has_operand"].compare("!=", 0) | (i > 0)
    return inside | c["wants_start"].compare("!=", 0)


def write_copies(module: ir.Module, kind: Kind) -> dict[str, Emit]:
    """Functions that copy rows of `count` numbers.

    take: from the lines order[0], order[1], ... of a tensor to padded rows, zeros after them.
    give: from padded rows to the lines order[0], order[1], ... of a tensor.
    copy: between padded rows.
    cut: from padded rows to lines that follow each other.
    """
    names = ("to", "to_row", "source", "source_row", "rows", "count")
    functions = {}
    for name in ("take", "give", "copy", "cut"):
        ordered = ("order",) if name in ("take", "give") else ()
        e = Emit(module, name, kind, (*names, *ordered), internal=True)
        g = e.args
        with e.loop(g["rows"]) as row:
            line = e.word(g["order"], row.index) if ordered else row.index
            to = g["to"] + g["to_row"] * (line if name == "give" else row.index)
            source = g["source"] + g["source_row"] * (line if name == "take" else row.index)
            with e.loop(g["count"], step=kind.lanes) as k:
                at, left = k.index * kind.bytes, g["count"] - k.index
                if name == "take":
                    e.store(load_part(e, source + at, left), to + at)
                elif name in ("give", "cut"):
                    store_part(e, e.load(source + at), to + at, left)
                else:
                    e.store(e.load(source + at), to + at)
        e.done()
        functions[name] = e
    return functions


def for_chunks(e: Emit, c: Frame, role: Role, run: Callable[[Num, Num, Num], None]) -> None:
    """Write `run(d, low, high)` for each of this thread's chunks."""
    with e.loop(c["D"] * c["chunks"], start=role.task, step=role.tasks) as task:
        d, part = task.index // c["chunks"], task.index % c["chunks"]
        run(d, e.word(c["bounds"], part), e.word(c["bounds"] + part * 8, 1))


def time_of(c: Frame, f: Frame, i: Num) -> Num:
    """The step of the sequence that comes i-th in this direction."""
    return where(f["reverse"].compare("!=", 0), c["T"] - 1 - i, i)


def alive(e: Emit, c: Frame, t: Num, low: Num, high: Num) -> Num:
    """How many of the rows low..high a step has."""
    return (e.word(c["alive"], t).least(high) - low).most(0)


def first_row(e: Emit, c: Frame, f: Frame, j: Num, last: Num) -> Num:
    """Rows before those of the steps j..last, counted from the sequence's end in this direction."""
    t = where(f["reverse"].compare("!=", 0), j, c["T"] - last)
    return e.word(c["offset"], t)


def state_width(e: Emit, c: Frame, s: Num) -> Num:
    return e.word(c["state_widths"], s)


def take_states(
    e: Emit, c: Frame, copies: dict[str, Emit], to: tuple[Num, Num], tensor: Num, low: Num,
    rows: Num,
) -> None:  # fmt: skip
    """Rows from `low` of a tensor (B, width), or zeros where there is none, into padded rows."""
    place, width = to
    there = tensor.compare("!=", 0)
    source = where(there, tensor, c["zeros"])
    line = where(there, width * e.kind.bytes, e.number(0))
    order = c["order"] + low * 8
    e.call(copies["take"], to=place, to_row=c["H_row"], source=source, source_row=line, rows=rows,
           count=width, order=order)  # fmt: skip


def give_states(
    e: Emit, c: Frame, copies: dict[str, Emit], source: Num, s: Num, tensor: Num
) -> None:
    """Padded rows low..high of the s-th state, to where a tensor (B, width) begins."""
    low, high, width = e.args["low"], e.args["high"], state_width(e, c, s)
    e.call(
        copies["give"], to=tensor, to_row=width * e.kind.bytes, source=source,
        source_row=c["H_row"], rows=high - low, count=width, order=c["order"] + low * 8,
    )  # fmt: skip


def gather_x(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], first: Num, last: Num) -> Num:
    """x of the steps first..last, one row after the other; gives how many rows."""
    g = e.args
    with e.loop(last, e.number(0), start=first) as i:
        t, m = time_of(c, f, i.index), i.values[0]
        R = alive(e, c, t, g["low"], g["high"])
        source = c["x"] + e.word(c["x_steps"], t)
        e.call(copies["take"], to=g["scratch"] + m * c["I_row"], to_row=c["I_row"], source=source,
               source_row=c["x_row"], rows=R, count=c["I"],
               order=c["order"] + g["low"] * 8)  # fmt: skip
        i.next = [m + R]
    count: Num = i.values[0]
    return count


def write_reset(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`reset(...)`: what starts anew before the i-th step, of the rows low..high.

    `h` is where the output of row 0 lies; with `states` = 1 the other states stay as they are.
    """
    e, c, f, g = begin(module, "reset", kind, ("i", "low", "high", "h", "states"))
    with _rows(e, f, g["i"]) as (resets, row), e.loop(g["states"]) as s:
        state = f["state"] + s.index * c["state_plane"]
        to = where(s.index.compare("==", 0), g["h"], state) + row * c["H_row"]
        initial = e.word(resets["initial"], s.index)
        source = where(initial.compare("!=", 0), initial, c["zeros"])
        width = state_width(e, c, s.index)
        e.call(copies["take"], to=to, to_row=c["H_row"], source=source, source_row=0, rows=1,
               count=width, order=c["zeros"])  # fmt: skip
    return e.done()


def write_reset_back(module: ir.Module, kind: Kind) -> Emit:
    """`reset_back(...)`: gradients by states that the i-th step had from a reset go to there."""
    e, c, f, g = begin(module, "reset_back", kind, ("i", "low", "high"))
    blocks = c["H_row"] // kind.size
    with _rows(e, f, g["i"]) as (resets, row), e.loop(c["states"]) as s, e.loop(blocks) as block:
        place = s.index * c["state_plane"] + row * c["H_row"] + block.index * kind.size
        own = f["d_state"] + place
        with e.when(resets["d_initial"].compare("!=", 0)):
            total = resets["d_initial"] + place
            e.store(e.load(total) + e.load(own), total)
        e.store(e.constant(0), own)
    return e.done()


@contextmanager
def _rows(e: Emit, f: Frame, i: Num) -> Iterator[tuple[Frame, Num]]:
    """The body for each row of low..high that starts anew before the i-th step."""
    low, high = e.args["low"], e.args["high"]
    with e.when(f["resets"].compare("!=", 0)):
        resets = Frame(e, f["resets"], RESETS)
        first = resets["first"] + i * 8
        with e.loop(e.word(first, 1), start=e.word(first)) as k:
            row = e.word(resets["reset_rows"], k.index)
            with e.when((row >= low) & (row < high)):
                yield resets, row


def reset_share(e: Emit, c: Frame, f: Frame, reset: Emit, R: Num, i: Num, h: Num) -> Num:
    """In `chunk`: this member's share of the rows that start anew before the i-th step.

    They are among the R rows that the step before has given. Gives 1 where there are any,
    so that the members must meet, else 0.
    """
    g, count = e.args, _count(e, f, i)
    begin, end = my_share(R, g["member"], g["members"])
    with e.when(count > 0):
        low = g["low"]
        e.call(reset, **e.passed_on("block", "d"), i=i, low=low + begin, high=low + end,
               h=h - low * c["H_row"], states=c["states"])  # fmt: skip
    return where(count > 0, 1, e.number(0))


def _count(e: Emit, f: Frame, i: Num) -> Num:
    """How many rows start anew before the i-th step."""

    def counted() -> Num:
        first = Frame(e, f["resets"], RESETS)["first"] + i * 8
        return e.word(first, 1) - e.word(first)

    return e.choose(f["resets"].compare("!=", 0), counted, lambda: e.number(0))


@contextmanager
def _states(e: Emit, c: Frame, f: Frame, t: Num) -> Iterator[tuple[Num, Num, Num]]:
    """The body for each state besides the output: its number, where step t lies in its tensor (0:
    there is none), and bytes from row to row."""
    with e.when(f["traces"].compare("!=", 0)), e.loop(c["states"], start=1) as s:
        one = Frame(e, f["traces"] + (s.index - 1) * (8 * len(TRACE)), TRACE)
        before = e.word(c["offset"], t)
        place = one["tensor"] + t * one["step"] + before * one["before"]
        yield s.index, where(one["tensor"].compare("==", 0), 0, place), one["row"]


def give_traces(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], R: Num, t: Num) -> None:
    """This member's share of the rows of a step; the others must not go on before it is done."""
    g = e.args
    begin, end = my_share(R, g["member"], g["members"])
    first = g["low"] + begin
    with _states(e, c, f, t) as (s, place, row):
        source = f["state"] + s * c["state_plane"] + first * c["H_row"]
        e.call(copies["give"], to=place, to_row=row, source=source, source_row=c["H_row"],
               rows=end - begin, count=state_width(e, c, s),
               order=c["order"] + first * 8)  # fmt: skip


def write_take_traces(module: ir.Module, kind: Kind) -> Emit:
    """`take_traces(...)`: gradients by the states of R rows at step t, and by their traces."""
    e, c, f, g = begin(module, "take_traces", kind, ("low", "R", "t"))
    with _states(e, c, f, g["t"]) as (s, place, row), e.when(place.compare("!=", 0)):
        own, units = f["d_state"] + s * c["state_plane"], state_width(e, c, s)
        with e.loop(g["R"]) as k, e.loop(units, step=kind.lanes) as unit:
            at, b = unit.index * kind.bytes, g["low"] + k.index
            source = place + e.word(c["order"], b) * row
            to = own + b * c["H_row"] + at
            gradient = load_part(e, source + at, units - unit.index)
            e.store(e.load(to) + gradient, to)
    return e.done()


def write_seen(module: ir.Module, kind: Kind) -> Emit:
    """`seen(...)`: of R rows from row `low` on, the n-th over all steps and the m-th of the block.

    for rows: for states: norm; where too large: for states: scale
    """
    e, c, f, g = begin(module, "seen", kind, ("low", "R", "n", "m"))
    with e.loop(g["R"]) as row:
        with e.loop(c["states"], e.scalar(0).widened()) as s:
            units = e.word(c["state_widths"], s.index)
            square = _square(e, c, units, *_places(e, c, f, row.index, s.index))
            with e.when(f["norms"].compare("!=", 0)):
                place = (g["n"] + row.index) * c["states"] + s.index
                norm = _narrow(e, sqrt(square))
                e.store(norm, f["norms"] + place * kind.bytes)
            s.next = [s.values[0] + square]
        with e.when(c["clip"].compare("!=", 0)):
            _clip(e, c, f, row.index, sqrt(s.values[0]))
    return e.done()


def see(e: Emit, c: Frame, f: Frame, seen: Emit, rows: tuple[Num, Num, Num]) -> None:
    """In `back`: look at the rows of a step where somebody asks, before its derivative: how many,
    the first one's number over all steps, and in the block."""
    R, n, m = rows
    with e.when(f["norms"].compare("!=", 0) | c["clip"].compare("!=", 0)):
        e.call(seen, **e.passed_on("block", "d", "low"), R=R, n=n, m=m)


def _places(e: Emit, c: Frame, f: Frame, row: Num, s: Num) -> tuple[Num, Num]:
    """Where a row's gradient by a state lies: what later steps say, and the output; else zeros."""
    g, line = e.args, c["H_row"]
    later = f["d_state"] + s * c["state_plane"] + (g["low"] + row) * line
    return later, where(s.compare("==", 0), f["d_y_block"] + (g["m"] + row) * line, c["zeros"])


def _square(e: Emit, c: Frame, units: Num, later: Num, output: Num) -> Real:
    """The squared norm of their sum over so many units, in float64."""
    zero = e.constant(0)
    with e.loop(c["H_row"] // e.kind.size, zero.widened()) as block:
        at, left = block.index * e.kind.size, units - block.index * e.kind.lanes
        value = e.load(later + at) + e.load(output + at)
        value = where(lanes_below(e, left), value, zero).widened()
        block.next = [block.values[0] + value * value]
    return _across(block.values[0])


def _across(v: Vector) -> Real:
    """The sum of a vector's numbers, by halves."""
    lanes = v.lanes
    while lanes > 1:
        lanes //= 2
        v = v.shuffled(range(lanes)) + v.shuffled(range(lanes, 2 * lanes))
    return v.first()


def _clip(e: Emit, c: Frame, f: Frame, row: Num, norm: Real) -> None:
    """The row's gradients scaled to the norm asked for, where theirs is larger."""
    most = e.real(c["clip"]).widened()
    with e.when(norm > most):
        scale = e.spread(_narrow(e, most / norm))
        with e.loop(c["states"]) as s, e.loop(c["H_row"] // e.kind.size) as block:
            at = block.index * e.kind.size
            later, output = (v + at for v in _places(e, c, f, row, s.index))
            e.store(e.load(later) * scale, later)
            with e.when(s.index.compare("==", 0)):
                e.store(e.load(output) * scale, output)


def _narrow(e: Emit, value: Real) -> Real:
    """A number of float64 as those that are computed with."""
    return value if e.kind.bytes == 8 else value.narrowed()
