"""Weights packed for the tiles: each panel's numbers in the order a tile reads them.

Where a copy of the lines is kept next to the panels, they are first compared with it, bit by bit,
and packed only where they differ: a vector that is up to date costs two reads.

    forward   panel of V vectors: [K][V][lanes], a vector being the same gate of `lanes` units
    backward  panel of V vectors: [gates][H][V][lanes], a vector being `lanes` columns of the matrix

Units and columns that do not fill a vector are followed by zeros.
"""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.abi import WIDEST, Kind
from throughtime.compiler.llvm.loops.rows import (
    blocks_of,
    is_multiplied,
    load_part,
    run_at,
    store_part,
)
from throughtime.compiler.llvm.product import parts_of
from throughtime.compiler.llvm.tile import transposed
from throughtime.compiler.llvm.values import Bits, Num, Truth, Vector, where
from throughtime.compiler.llvm.writer import Emit, Frame, begin, common, direction

_AT_ONCE = 4
"""Vectors that are compared in one turn of a loop."""


def write_lines(module: ir.Module, kind: Kind, squares: Emit) -> Emit:
    """`pack_lines`: one vector of a panel from the matrix's lines, one line a lane.

    Lines lie one after the other, and so does the copy of them; `copy` = 0: none is kept.
    """
    names = ("block", "to", "to_step", "copy", "source", "lines", "K")
    e = Emit(module, "pack_lines", kind, names, internal=True)
    g, kept = e.args, e.args["copy"].compare("!=", 0)
    count = g["lines"].least(kind.lanes).most(0) * g["K"]
    asked = kept & common(e)["trusted"].compare("!=", 0)
    always = Truth(e.b, ir.IntType(1)(True))
    stale = e.choose(asked, lambda: _differ(e, g["source"], g["copy"], count), lambda: always)
    with e.when(stale):
        with e.when(kept), e.loop(count, step=kind.lanes) as k:
            at, left = k.index * kind.bytes, count - k.index
            store_part(e, load_part(e, g["source"] + at, left), g["copy"] + at, left)
        # What is packed is what is compared from now on, whoever writes the weights meanwhile.
        read = where(g["copy"].compare("!=", 0), g["copy"], g["source"])
        others = e.passed_on("block", "to", "to_step", "lines", "K")
        e.call(squares, source=read, **others)
    return e.done()


def _differ(e: Emit, first: Num, second: Num, count: Num) -> Truth:
    """Whether two rows of so many numbers differ in any bit."""
    kind = e.kind
    turn = _AT_ONCE * kind.lanes
    whole = count // turn * turn

    def other(total: Bits, a: Vector, b: Vector) -> Bits:
        return total | (a.bits() ^ b.bits())

    with e.loop(whole, e.constant(0).bits(), step=turn) as k:
        for i in range(_AT_ONCE):
            at = (k.index + i * kind.lanes) * kind.bytes
            k.next = [other(k.next[0], e.load(first + at), e.load(second + at))]
    with e.loop(count, k.values[0], start=whole, step=kind.lanes) as k:
        at, left = k.index * kind.bytes, count - k.index
        a, b = (load_part(e, address + at, left) for address in (first, second))
        k.next = [other(k.values[0], a, b)]
    total: Bits = k.values[0]
    return total.nonzero().any()


def write_squares(module: ir.Module, kind: Kind) -> Emit:
    """`pack_squares`: the vector itself.

    for squares of lanes x lanes numbers: transpose
    """
    names = ("block", "to", "to_step", "source", "lines", "K")
    e = Emit(module, "pack_squares", kind, names, internal=True)
    g, zeros, line = e.args, common(e)["zeros"], e.args["K"] * kind.bytes
    lines = [where(g["lines"] > i, g["source"] + line * i, zeros) for i in range(kind.lanes)]
    whole = g["K"] // kind.lanes * kind.lanes
    with e.loop(whole, step=kind.lanes) as k:
        square = transposed([e.load(line + k.index * kind.bytes) for line in lines])
        for i, vector in enumerate(square):
            e.store(vector, g["to"] + g["to_step"] * (k.index + i))
    with e.loop(g["K"], start=whole) as k:
        to, source = g["to"] + g["to_step"] * k.index, g["source"] + k.index * kind.bytes
        e.store(e.constant(0), to)
        with e.loop(g["lines"].least(kind.lanes)) as lane:
            e.store(e.real(source + line * lane.index), to + lane.index * kind.bytes)
    return e.done()


def write_vectors(module: ir.Module, kind: Kind, copies: dict[str, Emit], back: bool) -> Emit:
    """`pack_vectors(block, d)`: one direction's parameters of one number a unit, and biases where
    chains start with them."""
    e, c, f, _ = begin(module, "pack_vectors", kind, ())
    if not back:
        _pack_bias(e, c, f)
    with e.loop(c["unit_parameters"]) as v:
        to = f["unit_values"] + v.index * c["H_row"]
        source = e.word(f["unit_parameters_at"], v.index)
        e.call(copies["take"], to=to, to_row=0, source=source, source_row=0, rows=1, count=c["H"],
               order=c["zeros"])  # fmt: skip
    return e.done()


def write_packing(module: ir.Module, kind: Kind, vectors: Emit, matrices: Emit, back: bool) -> Emit:
    """`pack(block, thread, team)`: this thread's share of what forward or backward multiplies,
    unless the arena has it from a region before; `matrices` packs lines or, back, columns."""
    e = Emit(module, "pack", kind, ("block", "thread", "team"), internal=True)
    c = common(e)
    with e.when(c["packed"].compare("==", 0)), e.loop(c["D"]) as d:
        f = direction(e, d.index)
        if back:
            _pack_transposed(e, c, f, matrices)
        else:
            with e.when(c["in_place"].compare("==", 0)):
                _pack_panels(e, c, f, matrices, (e.args["thread"], e.args["team"]))
        with e.when(e.args["thread"].compare("==", 0)):
            e.call(vectors, block=e.args["block"], d=d.index)
    return e.done()


def _pack_panels(e: Emit, c: Frame, f: Frame, lines: Emit, mine: tuple[Num, Num]) -> None:
    """W and U for the forward pass."""
    blocks = c["H_row"] // e.kind.size
    inputs = f["W_pack"], f["W"], f["gate_a"], c["with_a"], c["I"]
    _pack_flat(e, lines, mine, inputs, (c["H"], blocks))
    with e.loop(c["early"]) as i:
        run = run_at(e, c, i.index)
        to, matrix = f["U_early"] + run["packed_first"], e.word(f["matrices"], run["matrix"])
        gates = f["gate_u"] + run["line"] * 8
        blocks = blocks_of(e, run["width"])
        one = run["count"] * blocks * (run["K"] * e.kind.size)
        with e.loop(run["blocks"]) as b:
            part = matrix + b.index * (run["width"] * run["K"] * e.kind.bytes)
            what = to + b.index * one, part, gates, run["count"], run["K"]
            _pack_flat(e, lines, mine, what, (run["width"], blocks))
    _pack_recurrent(e, c, f, lines, mine)


def _pack_transposed(e: Emit, c: Frame, f: Frame, columns: Emit) -> None:
    """U, and where x wants a gradient W, for the backward pass, but for what is read in place."""
    mine = e.passed_on("block", "thread", "team")
    with e.when(c["wants_x"].compare("!=", 0) & c["W_lies"].compare("==", 0)):
        e.call(columns, to=f["W_back"], source=f["W"], gate=f["gate_a"], gates=c["with_a"],
               lines=c["H"], columns=c["I"], **mine)  # fmt: skip
    with e.loop(where(c["U_lies"].compare("!=", 0), 0, c["early"] + 1)) as i:
        run = run_at(e, c, i.index)
        to, gates = f["U_back"] + run["packed_first"], f["gate_u"] + run["line"] * 8
        matrix = e.word(f["matrices"], run["matrix"])
        one = run["count"] * run["width"] * blocks_of(e, run["K"]) * e.kind.size
        with e.when(is_multiplied(c, run, c["T"] - 1)), e.loop(run["blocks"]) as b:
            part = matrix + b.index * (run["width"] * run["K"] * e.kind.bytes)
            e.call(columns, to=to + b.index * one, source=part, gate=gates, gates=run["count"],
                   lines=run["width"], columns=run["K"], **mine)  # fmt: skip


def write_columns(module: ir.Module, kind: Kind) -> Emit:
    """`pack_columns`: a matrix for the product with its transpose, `gates` blocks of lines.

    for panels of columns: for gates: for vectors: for units
    """
    names = ("block", "to", "source", "gate", "gates", "lines", "columns", "thread", "team")
    e = Emit(module, "pack_columns", kind, names, internal=True)
    g = e.args
    vectors, line, H = blocks_of(e, g["columns"]), g["columns"] * kind.bytes, g["lines"]
    with parts_of(e, vectors, e.number(WIDEST), (g["thread"], g["team"])) as (first, V):
        panel = g["to"] + first * (g["gates"] * H * kind.size)
        with e.loop(g["gates"]) as q, e.loop(V) as v:
            column = (first + v.index) * kind.lanes
            gate = e.word(g["gate"], q.index).most(0)
            source = g["source"] + gate * H * line + column * kind.bytes
            to = panel + (q.index * H * V + v.index) * kind.size
            with e.loop(H) as unit:
                value = load_part(e, source + unit.index * line, g["columns"] - column)
                e.store(value, to + unit.index * V * kind.size)
    return e.done()


def _pack_flat(
    e: Emit, lines: Emit, mine: tuple[Num, Num], what: tuple[Num, Num, Num, Num, Num],
    units: tuple[Num, Num],
) -> None:  # fmt: skip
    """W, or an early phase's matrix: columns are the units of each sum, one after the other.

    Args:
        e, lines, mine: the function, what packs a vector, and this thread's share.
        what: where to, the matrix, for each sum its number in it, how many sums, columns.
        units: how many each sum has, and in how many vectors.
    """
    (to, matrix, gates, count, K), (H, blocks) = what, units
    with parts_of(e, count * blocks, e.number(WIDEST), mine) as (first, V):
        panel = to + first * (K * e.kind.size)
        with e.loop(V) as v:
            column = first + v.index
            unit = column % blocks * e.kind.lanes
            gate = e.word(gates, column // blocks).most(0)
            source = matrix + (gate * H + unit) * K * e.kind.bytes
            _pack_vector(e, lines, (panel, v.index, V), source, H - unit, K)


def _pack_recurrent(e: Emit, c: Frame, f: Frame, lines: Emit, mine: tuple[Num, Num]) -> None:
    """U of the last phase: a panel holds all gates of some unit blocks, cut into tiles."""
    blocks, G, K = c["H_row"] // e.kind.size, c["last_u"], c["H"]
    with parts_of(e, blocks, c["panel"], mine) as (first, some):
        with parts_of(e, some * G, c["widest"]) as (group, V):
            tile = f["U_pack"] + (first * G + group) * (K * e.kind.size)
            with e.loop(V) as v:
                vector = group + v.index
                unit = (first + vector // G) * e.kind.lanes
                gate = e.word(f["gate_last"], vector % G).most(0)
                which = e.word(f["matrix_last"], vector % G)
                source = e.word(f["matrices"], which) + (gate * K + unit) * K * e.kind.bytes
                _pack_vector(e, lines, (tile, v.index, V), source, K - unit, K)


def _pack_vector(
    e: Emit, lines: Emit, place: tuple[Num, Num, Num], source: Num, left: Num, K: Num
) -> None:
    """One vector, its number and how many there are in its panel; the copy lies in that order."""
    panel, v, V = place
    twin = common(e)["twin"]
    copy = where(twin.compare("!=", 0), panel + v * (K * e.kind.size) + twin, 0)
    e.call(lines, block=e.args["block"], to=panel + v * e.kind.size, to_step=V * e.kind.size,
           copy=copy, source=source, lines=left, K=K)  # fmt: skip


def _pack_bias(e: Emit, c: Frame, f: Frame) -> None:
    """Where the chain of each sum starts: b_ih, b_hh, or their sum."""
    blocks = c["H_row"] // e.kind.size
    with e.loop(c["sums"]) as k, e.loop(blocks) as block:
        unit = block.index * e.kind.lanes
        total = e.constant(0)
        for name, gates in (("W_bias", "gate_a"), ("U_bias", "gate_u")):
            gate = e.word(f[gates], k.index)
            there = (gate >= 0) & f[name].compare("!=", 0)
            left = where(there, c["H"] - unit, e.number(0))
            address = f[name] + (gate * c["H"] + unit) * e.kind.bytes
            total = total + load_part(e, address, left)
        e.store(total, f["bias"] + k.index * c["H_row"] + unit * e.kind.bytes)
