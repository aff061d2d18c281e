"""A row of units that code walks over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from throughtime.compiler.llvm.cell.operands import Loads
from throughtime.compiler.llvm.values import Num, Vector
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.plan import Plan


class Row(NamedTuple):
    """A row of units that code walks over.

    Attributes:
        e: the function being written.
        plan: of the cell whose nodes are computed.
        loads: where the values that begin at a byte of the row's lines are.
        lines: where walks leave what later ones read, and bytes from one line to the next.
        held: nodes of one number a row that are there, in all lanes.
    """

    e: Emit
    plan: Plan
    loads: Callable[[Num], Loads]
    lines: tuple[Num, Num]
    held: dict[int, Vector]
