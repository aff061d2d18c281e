"""Lines of the cache that another thread has written, asked for before they are needed."""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from throughtime.compiler.llvm.emit import POINTER, VOID, Emit
from throughtime.compiler.llvm.frame import Frame
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.team import my_share

LINE: Final = 64
"""Bytes of a line of the cache."""


def fetch_shared(e: Emit, c: Frame) -> None:
    """In `step`: the old output of all units, and this member's part of the sums before U v.

    Asked for one by one, as products come to them, each would be waited for.
    """
    g = e.given
    begin, end = my_share(e, c["H_row"] // LINE, g["member"], g["members"])
    with e.loop(g["R"]) as row:
        _fetch(e, g["old"] + row.index * c["H_row"], c["H_row"])
        with e.loop(c["sums"]) as k:
            line = (row.index * c["sums"] + k.index) * c["H_row"]
            _fetch(e, g["pre"] + line + begin * LINE, (end - begin) * LINE)


def _fetch(e: Emit, address: Num, bytes: Num) -> None:
    """Every line of some memory, for reading, into the nearest cache."""
    number = ir.IntType(32)
    function = e.plain("llvm.prefetch.p0", VOID, [POINTER, number, number, number])
    with e.loop(bytes, step=LINE) as at:
        e.b.call(function, [e.pointer(address + at.index), number(0), number(3), number(1)])
