"""Resets: before a step some rows' states go back to where a reset says, gradients flow to there.

A step without resets costs a look at how many there are; a call without any, a look at one word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from throughtime.compiler.llvm.arguments import RESETS
from throughtime.compiler.llvm.loops.steps import state_width
from throughtime.compiler.llvm.loops.team import my_share
from throughtime.compiler.llvm.sizes import Kind
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit, Frame, common, direction


def write_reset(module: ir.Module, kind: Kind, copies: dict[str, Emit]) -> Emit:
    """`reset(...)`: what starts anew before the i-th step, of the rows low..high.

    `h` is where the output of row 0 lies; with `states` = 1 the other states stay as they are.
    """
    names = ("block", "d", "i", "low", "high", "h", "states")
    e = Emit(module, "reset", kind, names, internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    with _rows(e, f, g["i"]) as (given, row), e.loop(g["states"]) as s:
        state = f["state"] + s.index * c["state_plane"]
        to = where(s.index.compare("==", 0), g["h"], state) + row * c["H_row"]
        initial = e.word(given["initial"] + s.index * 8)
        source = where(initial.compare("!=", 0), initial, c["zeros"])
        width = state_width(e, c, s.index)
        e.call(copies["take"], to=to, to_row=c["H_row"], source=source, source_row=0, rows=1,
               count=width, order=c["zeros"])  # fmt: skip
    e.done()
    return e


def write_reset_back(module: ir.Module, kind: Kind) -> Emit:
    """`reset_back(...)`: gradients by states that the i-th step had from a reset go to there."""
    e = Emit(module, "reset_back", kind, ("block", "d", "i", "low", "high"), internal=True)
    c, g = common(e), e.given
    f = direction(e, g["d"])
    blocks = c["H_row"] // kind.size
    with _rows(e, f, g["i"]) as (given, row), e.loop(c["states"]) as s, e.loop(blocks) as block:
        place = s.index * c["state_plane"] + row * c["H_row"] + block.index * kind.size
        own = f["d_state"] + place
        with e.when(given["d_initial"].compare("!=", 0)):
            total = given["d_initial"] + place
            e.store(e.load(total) + e.load(own), total)
        e.store(e.constant(0), own)
    e.done()
    return e


@contextmanager
def _rows(e: Emit, f: Frame, i: Num) -> Iterator[tuple[Frame, Num]]:
    """The body for each row of low..high that starts anew before the i-th step."""
    low, high = e.given["low"], e.given["high"]
    with e.when(f["resets"].compare("!=", 0)):
        given = Frame(e, f["resets"], RESETS)
        first = given["first"] + i * 8
        with e.loop(e.word(first, 1), start=e.word(first)) as k:
            row = e.word(given["reset_rows"] + k.index * 8)
            with e.when((row >= low) & (row < high)):
                yield given, row


def reset_share(e: Emit, c: Frame, f: Frame, reset: Emit, R: Num, i: Num, h: Num) -> Num:
    """In `chunk`: this member's share of the rows that start anew before the i-th step.

    They are among the R rows that the step before has given. Gives 1 where there are any,
    so that the members must meet, else 0.
    """
    g, count = e.given, _count(e, f, i)
    begin, end = my_share(e, R, g["member"], g["members"])
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
