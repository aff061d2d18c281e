"""Weights packed for the tiles: every panel's numbers in the order in which a tile reads them.

    forward   panel of V vectors: [K][V][lanes], a vector being the same gate of `lanes` units
    backward  panel of V vectors: [gates][H][V][lanes], a vector being `lanes` columns of the matrix

Units and columns that do not fill a vector are followed by zeros.
"""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.frame import Frame, common, direction
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.lines import write_lines
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.phases import run_at
from throughtime.compiler.llvm.products import parts_of
from throughtime.compiler.llvm.rows import load_part
from throughtime.compiler.llvm.sections import blocks_of
from throughtime.compiler.llvm.tile_sizes import WIDEST


def write_packing(module: ir.Module, kind: Kind, copies: dict[str, Emit], back: bool) -> Emit:
    """`pack(block, thread, team)`: this thread's share of what forward or backward multiplies,
    unless the arena has it from a region before."""
    matrices = _write_columns(module, kind) if back else write_lines(module, kind)
    e = Emit(module, "pack", kind, ("block", "thread", "team"), internal=True)
    c = common(e)
    mine = e.given["thread"], e.given["team"]
    with e.when(c["packed"].compare("==", 0)), e.loop(c["D"]) as d:
        f = direction(e, d.index)
        (_pack_transposed if back else _pack_panels)(e, c, f, matrices, mine)
        with e.when(e.given["thread"].compare("==", 0)):
            _pack_bias(e, c, f)
            with e.loop(c["vectors"]) as v:
                vector, own = f["vector"] + v.index * c["H_row"], e.word(f["own"] + v.index * 8)
                e.call(copies["take"], vector, 0, own, 0, 1, c["H"], c["zeros"])
    e.done()
    return e


def _pack_panels(e: Emit, c: Frame, f: Frame, lines: Emit, mine: tuple[Num, Num]) -> None:
    """W and U for the forward pass."""
    blocks = c["H_row"] // e.kind.size
    inputs = f["W_pack"], f["W"], f["gate_a"], c["with_a"], c["I"]
    _pack_flat(e, lines, mine, inputs, (c["H"], blocks))
    with e.loop(c["early"]) as i:
        run = run_at(e, c, i.index)
        to, matrix = f["U_early"] + run["packed"], matrix_of(e, f["matrices"], run["matrix"])
        gates = f["gate_u"] + run["line"] * 8
        blocks = blocks_of(e, run["width"])
        one = run["count"] * blocks * (run["K"] * e.kind.size)
        with e.loop(run["blocks"]) as b:
            part = matrix + b.index * (run["width"] * run["K"] * e.kind.bytes)
            what = to + b.index * one, part, gates, run["count"], run["K"]
            _pack_flat(e, lines, mine, what, (run["width"], blocks))
    _pack_recurrent(e, c, f, lines, mine)


def _pack_transposed(e: Emit, c: Frame, f: Frame, columns: Emit, mine: tuple[Num, Num]) -> None:
    """U, and where x wants a gradient W, for the backward pass."""
    block = e.given["block"]
    with e.when(c["wants_x"].compare("!=", 0)):
        e.call(columns, block, f["W_back"], f["W"], f["gate_a"], c["with_a"], c["H"], c["I"], *mine)
    with e.loop(c["early"] + 1) as i:
        run = run_at(e, c, i.index)
        to, gates = f["U_back"] + run["packed"], f["gate_u"] + run["line"] * 8
        matrix = matrix_of(e, f["matrices"], run["matrix"])
        one = run["count"] * run["width"] * blocks_of(e, run["K"]) * e.kind.size
        with e.loop(run["blocks"]) as b:
            part = matrix + b.index * (run["width"] * run["K"] * e.kind.bytes)
            what = gates, run["count"], run["width"], run["K"]
            e.call(columns, block, to + b.index * one, part, *what, *mine)


def matrix_of(e: Emit, matrices: Num, number: Num) -> Num:
    """The address of a matrix among a direction's."""
    return e.word(matrices + number * 8)


def _write_columns(module: ir.Module, kind: Kind) -> Emit:
    """`pack_columns`: a matrix for the product with its transpose, `gates` blocks of lines.

    for panels of columns: for gates: for vectors: for units
    """
    names = ("block", "to", "source", "gate", "gates", "lines", "columns", "thread", "team")
    e = Emit(module, "pack_columns", kind, names, internal=True)
    g = e.given
    vectors, line, H = blocks_of(e, g["columns"]), g["columns"] * kind.bytes, g["lines"]
    with parts_of(e, vectors, e.number(WIDEST), (g["thread"], g["team"])) as (first, V):
        panel = g["to"] + first * (g["gates"] * H * kind.size)
        with e.loop(g["gates"]) as q, e.loop(V) as v:
            column = (first + v.index) * kind.lanes
            gate = e.word(g["gate"] + q.index * 8).most(0)
            source = g["source"] + gate * H * line + column * kind.bytes
            to = panel + (q.index * H * V + v.index) * kind.size
            with e.loop(H) as unit:
                value = load_part(e, source + unit.index * line, g["columns"] - column)
                e.store(value, to + unit.index * V * kind.size)
    e.done()
    return e


def _pack_flat(
    e: Emit, lines: Emit, mine: tuple[Num, Num], what: tuple[Num, Num, Num, Num, Num],
    units: tuple[Num, Num],
) -> None:  # fmt: skip
    """W, or an early phase's matrix: columns are the units of each sum, one behind the other.

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
            gate = e.word(gates + column // blocks * 8).most(0)
            source = matrix + (gate * H + unit) * K * e.kind.bytes
            _pack_vector(e, lines, (panel, v.index, V), source, H - unit, K)


def _pack_recurrent(e: Emit, c: Frame, f: Frame, lines: Emit, mine: tuple[Num, Num]) -> None:
    """U of the last phase: a panel holds all gates of some unit blocks, cut into tiles."""
    blocks, G, K = c["H_row"] // e.kind.size, c["last_u"], c["H"]
    with parts_of(e, blocks, c["panel"], mine) as (first, some):
        with parts_of(e, some * G, e.number(WIDEST)) as (group, V):
            tile = f["U_pack"] + (first * G + group) * (K * e.kind.size)
            with e.loop(V) as v:
                vector = group + v.index
                unit = (first + vector // G) * e.kind.lanes
                gate = e.word(f["gate_last"] + vector % G * 8).most(0)
                which = e.word(f["matrix_last"] + vector % G * 8)
                source = matrix_of(e, f["matrices"], which) + (gate * K + unit) * K * e.kind.bytes
                _pack_vector(e, lines, (tile, v.index, V), source, K - unit, K)


def _pack_vector(
    e: Emit, lines: Emit, place: tuple[Num, Num, Num], source: Num, left: Num, K: Num
) -> None:
    """One vector, its number and how many there are in its panel; the copy lies in that order."""
    panel, v, V = place
    twin = common(e)["twin"]
    copy = twin.choose("!=", 0, panel + v * (K * e.kind.size) + twin, 0)
    e.call(lines, e.given["block"], panel + v * e.kind.size, V * e.kind.size, copy, source, left, K)


def _pack_bias(e: Emit, c: Frame, f: Frame) -> None:
    """Where the chain of each sum starts: b_ih, b_hh, or their sum."""
    blocks = c["H_row"] // e.kind.size
    with e.loop(c["sums"]) as k, e.loop(blocks) as block:
        unit = block.index * e.kind.lanes
        total = e.zero()
        for name, gates in (("W_bias", "gate_a"), ("U_bias", "gate_u")):
            gate = e.word(f[gates] + k.index * 8)
            there = e.b.and_(gate.compare(">=", 0), f[name].compare("!=", 0))
            left = Num(e.b, e.b.select(there, (c["H"] - unit).value, e.number(0).value))
            address = f[name] + (gate * c["H"] + unit) * e.kind.bytes
            total = e.b.fadd(total, load_part(e, address, left))
        e.store(total, f["bias"] + k.index * c["H_row"] + unit * e.kind.bytes)
