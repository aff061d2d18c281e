"""The numbers behind the widths that a plan names, for one hidden size."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

from throughtime.cells import Cell
from throughtime.compiler.llvm.tile_sizes import MOST_LANES
from throughtime.compiler.masked import NO_MASKS, Masks
from throughtime.compiler.plan import Plan, plan


@dataclass(frozen=True)
class Widths:
    """How many units the parts of a step have.

    Attributes:
        line: of the longest row.
        states: of each state; the first is the output's.
        units: of each width that the plan names.
        sums: of each sum.
        sources: of what each sum's matrix multiplies, that is its columns; 0 where it has none.
        blocks: of each sum's matrix on its diagonal; then sources are those of one block.
        matrices: for each sum the number of its matrix; the first is weight_hh.
        shapes: lines and columns of each matrix.
    """

    line: int
    states: tuple[int, ...]
    units: tuple[int, ...]
    sums: tuple[int, ...]
    sources: tuple[int, ...]
    blocks: tuple[int, ...]
    matrices: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]

    @cached_property
    def recurrent(self) -> int:
        """Numbers of all matrices that steps multiply by."""
        return sum(w * k for w, k in zip(self.sums, self.sources, strict=True))

    @property
    def out(self) -> int:
        """Of the output."""
        return self.states[0]


@functools.lru_cache(maxsize=256)
def matrix_names(cell: Cell) -> tuple[str, ...]:
    """The names of the matrices that steps multiply by; weight_hh, if need be of no gate, first."""
    return ("weight_hh", *(f"weight_{name}" for name in cell.layout.products))


@functools.lru_cache(maxsize=256)
def widths_for(cell: Cell, H: int, masks: Masks = NO_MASKS) -> Widths:
    """The widths of a cell that has a plan; with masks its sums may come in another order."""
    found = plan(cell, masks)
    assert isinstance(found, Plan)
    states, products = cell.widths(H), cell.layout.products
    units = {w: int(w) if w.isdigit() else cell.width(w, H) for w in found.widths.names}
    gates = (len(cell.layout.recurrent_gates) * H, states[0])
    shapes = [gates, *(_shape(cell, name, H) for name in products)]
    blocks = [1, *(cell.blocks_of(name) for name in products)]
    matrices = tuple(products.index(s.u) + 1 if s.u in products else 0 for s in found.sums)
    return Widths(
        max(H, *states, *units.values(), *map(_longest, shapes[1:], blocks[1:])),
        states,
        tuple(units.values()),
        tuple(shapes[m][0] if m else H for m in matrices),
        tuple(shapes[m][1] if s.u else 0 for m, s in zip(matrices, found.sums, strict=True)),
        tuple(blocks[m] for m in matrices),
        matrices,
        tuple(shapes),
    )


def _shape(cell: Cell, product: str, H: int) -> tuple[int, int]:
    to, source = cell.products[product]
    return cell.width(to, H), cell.width(source, H) // cell.blocks_of(product)


def _longest(shape: tuple[int, int], blocks: int) -> int:
    """Units of a line that takes either side of a product; of blocks that are written one after the
    other, each in whole vectors, so that the last one reaches beyond the last unit."""
    if blocks == 1:
        return max(shape)
    lines, columns = shape[0] // blocks, shape[1]
    return max((blocks - 1) * n + -(-n // MOST_LANES) * MOST_LANES for n in (lines, columns))
