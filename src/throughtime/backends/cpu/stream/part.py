"""What a compiled stream is made of: layers, and what stands between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from throughtime.backends.call import Call
from throughtime.compiler.plan import Plan


class PartProduct(NamedTuple):
    """A linear part: weight (O, K), and bias (O,) or None."""

    weight: Tensor
    bias: Tensor | None


class PartSum(NamedTuple):
    """What two parts give, added."""


class RowFunction(NamedTuple):
    """A function of each row alone: an activation, a normalisation.

    Attributes:
        plan: of a step without memory.
        vectors: name -> (width,), what it reads besides a row.
        width: of a row.
    """

    plan: Plan
    vectors: Mapping[str, Tensor]
    width: int


class LookupTable(NamedTuple):
    """Rows by their numbers, first of all: (V, width)."""

    rows: Tensor


Part = Call | PartProduct | PartSum | RowFunction | LookupTable


class Placed(NamedTuple):
    """A part, and what it reads: 0 is what a step is given, k + 1 what the k-th part gives."""

    part: Part
    sources: tuple[int, ...]


def output_width(part: Part, below: int) -> int:
    """How many numbers of a row a part gives, from a row of `below`."""
    if isinstance(part, PartProduct):
        return len(part.weight)
    if isinstance(part, LookupTable):
        return part.rows.shape[-1]
    return part.cell.widths(part.hidden_size)[0] if isinstance(part, Call) else below


def like(part: Part) -> Tensor | None:
    """A tensor of the dtype and device that a part computes in, its last width the input's."""
    if isinstance(part, Call):
        return part.x
    if isinstance(part, PartProduct):
        return part.weight
    return part.rows if isinstance(part, LookupTable) else None
