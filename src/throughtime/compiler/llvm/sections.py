"""The units of a row, one loop for each width that a step's values have."""

from __future__ import annotations

from collections.abc import Iterator

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.plan import Plan


def blocks_of(e: Emit, units: Num) -> Num:
    """How many vectors so many units fill."""
    return (units + e.kind.lanes - 1) // e.kind.lanes


def units_of(e: Emit, plan: Plan) -> dict[str, Num]:
    """How many units each width has; arguments of the function are H and a list, `widths`."""
    names = plan.widths.names
    g = e.given
    return {names[0]: g["H"]} | {w: e.word(g["widths"], i) for i, w in enumerate(names[1:], 1)}


def sections(e: Emit, plan: Plan, blocks: Num) -> Iterator[tuple[str, Num, Num]]:
    """For each width its name, how many units it has, and of how many blocks.

    Args:
        e: the function.
        plan: of the cell.
        blocks: of a step whose widths are all the same, which may be a part of them.
    """
    for name, units in units_of(e, plan).items():
        yield name, units, blocks if plan.widths.even else blocks_of(e, units)
