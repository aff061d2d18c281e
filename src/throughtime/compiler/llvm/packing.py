"""Weights packed for the tiles: every panel's numbers in the order in which a tile reads them.

    forward   panel of V vectors: [K][V][lanes], a vector being the same gate of `lanes` units
    backward  panel of V vectors: [gates][H][V][lanes], a vector being `lanes` columns of the matrix

Units and columns that do not fill a vector are followed by zeros.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.block import Frame, common, direction
from throughtime.compiler.llvm.emit import Emit, Kind, Num
from throughtime.compiler.llvm.products import parts_of
from throughtime.compiler.llvm.rows import load_part
from throughtime.compiler.llvm.tile import WIDEST


def write_packing(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`pack(block, thread, team)`: this thread's share of the packs that `packs` asks for.

    Bits of `packs`: 1 the forward matrices, 2 the backward ones.
    """
    lines = _write_lines(module, kind)
    columns = _write_columns(module, kind)
    e = Emit(module, "pack", kind, ("block", "thread", "team"), internal=True)
    c = common(e)
    mine = e.given["thread"], e.given["team"]
    with e.loop(c["D"]) as d:
        f = direction(e, d.index)
        with e.when((c["packs"] % 2).compare("!=", 0)):
            _pack_inputs(e, c, f, lines, mine)
            _pack_recurrent(e, c, f, lines, mine)
        with e.when(e.given["thread"].compare("==", 0)):
            _pack_bias(e, c, f)
            with e.loop(c["vectors"]) as v:
                vector = f["vector"] + v.index * c["H_row"]
                e.call(copies["take"], vector, 0, e.word(f["own"] + v.index * 8), 0, 1, c["H"], c["zeros"])
        with e.when(c["packs"].compare(">=", 2)):
            units = c["H"]
            with e.when(c["wants_x"].compare("!=", 0)):
                e.call(columns, e.given["block"], f["W_back"], f["W"], f["gate_a"], c["with_a"],
                       c["I"], *mine)  # fmt: skip
            e.call(columns, e.given["block"], f["U_back"], f["U"], f["gate_u"] + c["first_u"] * 8,
                   c["with_u"], units, *mine)  # fmt: skip
    e.done()
    return e


def _write_lines(module: ir.Module, kind: Kind) -> Emit:
    """`pack_lines`: one vector of a panel from the matrix's lines, one line a lane.

    for squares of lanes x lanes numbers: transpose
    """
    names = ("block", "to", "to_step", "source", "source_line", "lines", "K")
    e = Emit(module, "pack_lines", kind, names, internal=True)
    g, zeros = e.given, common(e)["zeros"]
    lines = [
        Num(e.b, e.b.select(g["lines"].compare(">", i), (g["source"] + g["source_line"] * i).value,
                            zeros.value))
        for i in range(kind.lanes)
    ]  # fmt: skip
    whole = g["K"] // kind.lanes * kind.lanes
    with e.loop(whole, step=kind.lanes) as k:
        square = transposed(e, [e.load(line + k.index * kind.bytes) for line in lines])
        for i, vector in enumerate(square):
            e.store(vector, g["to"] + g["to_step"] * (k.index + i))
    left = g["K"] - whole
    with e.when(left.compare(">", 0)):
        parts = [load_part(e, line + whole * kind.bytes, left) for line in lines]
        for i, vector in enumerate(transposed(e, parts)):
            with e.when(left.compare(">", i)):
                e.store(vector, g["to"] + g["to_step"] * (whole + i))
    e.done()
    return e


def transposed(e: Emit, square: list[Any]) -> list[Any]:
    """As many vectors as a vector has lanes, lines for columns: blocks of 1, 2, 4, ... change places."""
    lanes, size = e.kind.lanes, 1
    while size < lanes:
        kept = [lane if not lane & size else lanes + lane - size for lane in range(lanes)]
        moved = [lane + size if not lane & size else lanes + lane for lane in range(lanes)]
        new = list(square)
        for i in range(lanes):
            if not i & size:
                a, b = square[i], square[i + size]
                new[i], new[i + size] = (_shuffled(e, a, b, m) for m in (kept, moved))
        square, size = new, 2 * size
    return square


def _shuffled(e: Emit, a: Any, b: Any, places: list[int]) -> Any:
    mask = ir.VectorType(ir.IntType(32), e.kind.lanes)(places)
    return e.b.shuffle_vector(a, b, mask)


def _write_columns(module: ir.Module, kind: Kind) -> Emit:
    """`pack_columns`: a matrix for the product with its transpose, `gates` blocks of H lines.

    for panels of columns: for gates: for vectors: for units
    """
    names = ("block", "to", "source", "gate", "gates", "columns", "thread", "team")
    e = Emit(module, "pack_columns", kind, names, internal=True)
    c, g = common(e), e.given
    vectors = (g["columns"] + kind.lanes - 1) // kind.lanes
    line, H = g["columns"] * kind.bytes, c["H"]
    with parts_of(e, vectors, e.number(WIDEST), (g["thread"], g["team"])) as (first, V):
        panel = g["to"] + first * (g["gates"] * H * kind.size)
        with e.loop(g["gates"]) as q, e.loop(V) as v:
            column = (first + v.index) * kind.lanes
            source = g["source"] + e.word(g["gate"] + q.index * 8) * H * line + column * kind.bytes
            to = panel + (q.index * H * V + v.index) * kind.size
            with e.loop(H) as unit:
                value = load_part(e, source + unit.index * line, g["columns"] - column)
                e.store(value, to + unit.index * V * kind.size)
    e.done()
    return e


def _pack_inputs(e: Emit, c: Frame, f: Frame, lines: Emit, mine: tuple[Num, Num]) -> None:
    """W: the columns are the units of each sum with x, one sum after the other."""
    blocks = c["H_row"] // e.kind.size
    with parts_of(e, c["with_a"] * blocks, e.number(WIDEST), mine) as (first, V):
        panel = f["W_pack"] + first * (c["I"] * e.kind.size)
        with e.loop(V) as v:
            column = first + v.index
            unit = column % blocks * e.kind.lanes
            gate = e.word(f["gate_a"] + column // blocks * 8)
            line = c["I"] * e.kind.bytes
            e.call(lines, e.given["block"], panel + v.index * e.kind.size, V * e.kind.size,
                   f["W"] + (gate * c["H"] + unit) * line, line, c["H"] - unit, c["I"])  # fmt: skip


def _pack_recurrent(e: Emit, c: Frame, f: Frame, lines: Emit, mine: tuple[Num, Num]) -> None:
    """U: a panel holds all gates of some unit blocks, cut into tiles of at most WIDEST vectors."""
    blocks, G, K = c["H_row"] // e.kind.size, c["with_u"], c["H"]
    with parts_of(e, blocks, c["panel"], mine) as (first, some):
        with parts_of(e, some * G, e.number(WIDEST)) as (group, V):
            tile = f["U_pack"] + (first * G + group) * (K * e.kind.size)
            with e.loop(V) as v:
                vector = group + v.index
                unit = (first + vector // G) * e.kind.lanes
                gate = e.word(f["gate_u"] + (c["first_u"] + vector % G) * 8)
                line = K * e.kind.bytes
                e.call(lines, e.given["block"], tile + v.index * e.kind.size, V * e.kind.size,
                       f["U"] + (gate * K + unit) * line, line, K - unit, K)  # fmt: skip


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
