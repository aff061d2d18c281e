"""Where a chunk's states come from and go to, inside the functions that carry a chunk forward."""

from __future__ import annotations

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.frame import Frame
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.records import give_records
from throughtime.compiler.llvm.steps import state_width, take_states
from throughtime.compiler.llvm.team import my_share


def take_start(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], restart: Emit) -> None:
    """The first states of a chunk's rows, a reset before the first step among them."""
    low, high = e.given["low"], e.given["high"]
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        start, width = e.word(f["start"] + s.index * 8), state_width(e, c, s.index)
        take_states(e, c, copies, (own, width), start, low, high - low)
    e.call(restart, e.given["block"], e.given["d"], 0, low, high, f["state"], c["states"])


def h_places(c: Frame, f: Frame, low: Num, i: Num) -> tuple[Num, Num]:
    """Where h of a chunk lies before the i-th step, and where it will lie after it."""
    places = [f[name] + low * c["H_row"] for name in ("state", "new")]
    return (
        (i % 2).choose("==", 0, places[0], places[1]),
        (i % 2).choose("==", 0, places[1], places[0]),
    )


def give_output(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], R: Num, t: Num, new: Num
) -> Num:
    """This member's share of what a step has given.

    Gives 1 where other states than the output are recorded, so that the members must meet, else 0.
    """
    _give_share(e, c, f, copies, R, t, new)
    give_records(e, c, f, copies, R, t)
    return f["records"].choose("!=", 0, 1, e.number(0))


def _give_share(
    e: Emit, c: Frame, f: Frame, copies: dict[str, Emit], R: Num, t: Num, new: Num
) -> None:
    """Some rows of the output, or some units of all rows.

    Resets change whole rows of it next, so with them a member gives the rows that it will reset.
    """
    g, lanes = e.given, e.kind.lanes
    whole = e.b.or_(R.compare(">=", g["members"]), f["restarts"].compare("!=", 0))

    def share(rows: Num, units: Num) -> Num:
        return Num(e.b, e.b.select(whole, rows.value, units.value))

    (low, high), (first, last) = (
        my_share(e, count, g["member"], g["members"])
        for count in (R, (c["out"] + lanes - 1) // lanes)
    )
    begin, end = share(low, e.number(0)), share(high, R)
    unit, behind = (
        share(e.number(0), first * lanes),
        share(c["out"], (last * lanes).least(c["out"])),
    )
    y = c["y"] + f["y_first"] + e.word(c["y_steps"] + t * 8) + unit * e.kind.bytes
    e.call(copies["give"], y, c["y_row"], new + begin * c["H_row"] + unit * e.kind.bytes,
           c["H_row"], end - begin, behind - unit, c["order"] + (g["low"] + begin) * 8)  # fmt: skip


def give_final(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit]) -> None:
    """The last states of a chunk's rows."""
    g = e.given
    low, rows = g["low"], g["high"] - g["low"]
    last, _ = h_places(c, f, low, c["T"])
    with e.loop(c["states"]) as s:
        own = f["state"] + s.index * c["state_plane"] + low * c["H_row"]
        source, width = s.index.choose("==", 0, last, own), state_width(e, c, s.index)
        e.call(copies["give"], e.word(f["final"] + s.index * 8), width * e.kind.bytes, source,
               c["H_row"], rows, width, c["order"] + low * 8)  # fmt: skip
