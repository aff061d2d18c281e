"""Sequences of the states besides the output: written forward, their gradients taken in backward.

    forward, after a step:       trace_s[t] = s_t
    backward, before it:         d_s += d_trace_s[t]

A call that asks for none costs a look at one word a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from throughtime.compiler.llvm.arguments import TRACE
from throughtime.compiler.llvm.loops.rows import load_part
from throughtime.compiler.llvm.loops.steps import state_width
from throughtime.compiler.llvm.loops.team import my_share
from throughtime.compiler.llvm.sizes import Kind
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit, Frame, common, direction


@contextmanager
def _states(e: Emit, c: Frame, f: Frame, t: Num) -> Iterator[tuple[Num, Num, Num]]:
    """The body for each state besides the output: its number, where step t lies in its tensor (0:
    there is none), and bytes from row to row."""
    with e.when(f["traces"].compare("!=", 0)), e.loop(c["states"], start=1) as s:
        one = Frame(e, f["traces"] + (s.index - 1) * (8 * len(TRACE)), TRACE)
        before = e.word(c["offset"] + t * 8)
        place = one["tensor"] + t * one["step"] + before * one["before"]
        yield s.index, where(one["tensor"].compare("==", 0), 0, place), one["row"]


def give_traces(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], R: Num, t: Num) -> None:
    """This member's share of the rows of a step; the others must not go on before it is done."""
    g = e.given
    begin, end = my_share(e, R, g["member"], g["members"])
    first = g["low"] + begin
    with _states(e, c, f, t) as (s, place, row):
        source = f["state"] + s * c["state_plane"] + first * c["H_row"]
        e.call(copies["give"], to=place, to_row=row, source=source, source_row=c["H_row"],
               rows=end - begin, count=state_width(e, c, s),
               order=c["order"] + first * 8)  # fmt: skip


def write_take_traces(module: ir.Module, kind: Kind) -> Emit:
    """`take_traces(...)`: gradients by the states of R rows at step t, and by their traces."""
    e = Emit(module, "take_traces", kind, ("block", "d", "low", "R", "t"), internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    with _states(e, c, f, g["t"]) as (s, place, row), e.when(place.compare("!=", 0)):
        own, units = f["d_state"] + s * c["state_plane"], state_width(e, c, s)
        with e.loop(g["R"]) as k, e.loop(units, step=kind.lanes) as unit:
            at, b = unit.index * kind.bytes, g["low"] + k.index
            source = place + e.word(c["order"] + b * 8) * row
            to = own + b * c["H_row"] + at
            gradient = load_part(e, source + at, units - unit.index)
            e.store(e.load(to) + gradient, to)
    e.done()
    return e
