"""Chunks of rows and steps of time, as forward and backward both walk them."""

from __future__ import annotations

from collections.abc import Callable

from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit, Frame


def for_chunks(
    e: Emit, c: Frame, thread: Num, team: Num, run: Callable[[Num, Num, Num], None]
) -> None:
    """Write `run(d, low, high)` for each of this thread's chunks."""
    with e.loop(c["D"] * c["chunks"], start=thread, step=team) as task:
        d, part = task.index // c["chunks"], task.index % c["chunks"]
        run(d, e.word(c["bounds"] + part * 8), e.word(c["bounds"] + part * 8, 1))


def time_of(e: Emit, c: Frame, f: Frame, i: Num) -> Num:
    """The step of the sequence that comes i-th in this direction."""
    return where(f["reverse"].compare("!=", 0), c["T"] - 1 - i, i)


def alive(e: Emit, c: Frame, t: Num, low: Num, high: Num) -> Num:
    """How many of the rows low..high a step has."""
    return (e.word(c["alive"] + t * 8).least(high) - low).most(0)


def first_row(e: Emit, c: Frame, f: Frame, j: Num, last: Num) -> Num:
    """Rows before those of the steps j..last, counted from the sequence's end in this direction."""
    t = where(f["reverse"].compare("!=", 0), j, c["T"] - last)
    return e.word(c["offset"] + t * 8)


def state_width(e: Emit, c: Frame, s: Num) -> Num:
    """How many units a state has."""
    return e.word(c["state_widths"] + s * 8)


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


def gather_x(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], first: Num, last: Num) -> Num:
    """x of the steps first..last, one row after the other; gives how many rows."""
    g = e.given
    with e.loop(last, e.number(0), start=first) as i:
        t, m = time_of(e, c, f, i.index), i.values[0]
        R = alive(e, c, t, g["low"], g["high"])
        source = c["x"] + e.word(c["x_steps"] + t * 8)
        e.call(copies["take"], to=g["scratch"] + m * c["I_row"], to_row=c["I_row"], source=source,
               source_row=c["x_row"], rows=R, count=c["I"],
               order=c["order"] + g["low"] * 8)  # fmt: skip
        i.next = [m + R]
    count: Num = i.values[0]
    return count
