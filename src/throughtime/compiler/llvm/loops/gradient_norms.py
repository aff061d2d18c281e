"""What backward sees at a step: the norms of each row's gradients by the new states, and clipping.

    n_s = || dL/ds ||  for each state s;  all of them times c / n where n = sqrt(sum n_s^2) > c

Norms are those before clipping. Squares are summed in float64: no gradient that a number can hold
overflows in them.
"""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.loops.rows import lanes_below
from throughtime.compiler.llvm.sizes import Kind
from throughtime.compiler.llvm.values import Num, Real, Vector, sqrt, where
from throughtime.compiler.llvm.writer import Emit, Frame, common, direction

ARGUMENTS = ("block", "d", "low", "R", "n", "m")


def write_seen(module: ir.Module, kind: Kind) -> Emit:
    """`seen(...)`: of R rows from row `low` on, the n-th over all steps and the m-th of the block.

    for rows: for states: norm; where too large: for states: scale
    """
    e = Emit(module, "seen", kind, ARGUMENTS, internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    with e.loop(g["R"]) as row:
        with e.loop(c["states"], e.scalar(0).widened()) as s:
            units = e.word(c["state_widths"] + s.index * 8)
            square = _square(e, c, units, *_places(e, c, f, row.index, s.index))
            with e.when(f["norms"].compare("!=", 0)):
                place = (g["n"] + row.index) * c["states"] + s.index
                norm = _narrow(e, sqrt(square))
                e.store(norm, f["norms"] + place * kind.bytes)
            s.next = [s.values[0] + square]
        with e.when(c["clip"].compare("!=", 0)):
            _clip(e, c, f, row.index, sqrt(s.values[0]))
    e.done()
    return e


def see(e: Emit, c: Frame, f: Frame, seen: Emit, rows: tuple[Num, Num, Num]) -> None:
    """In `back`: look at the rows of a step where somebody asks, before its derivative.

    Args:
        e, c, f: the function, and its numbers.
        seen: of `write_seen`.
        rows: how many, the first one's number over all steps, and in the block.
    """
    asked = f["norms"].compare("!=", 0) | c["clip"].compare("!=", 0)
    with e.when(asked):
        R, n, m = rows
        e.call(seen, **e.passed_on("block", "d", "low"), R=R, n=n, m=m)


def _places(e: Emit, c: Frame, f: Frame, row: Num, s: Num) -> tuple[Num, Num]:
    """Where a row's gradient by a state lies: what later steps say, and the output; else zeros."""
    g, line = e.given, c["H_row"]
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
