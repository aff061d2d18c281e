"""The shape of a call: all that its argument block follows from, except addresses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.active_rows import Extent, Rows
from throughtime.backends.cpu.look import Parameters, parameters_of
from throughtime.backends.cpu.schedule import (
    Team,
    UnitCounts,
    masks_of,
    strides_of,
    whole_vectors,
    widths_for,
)
from throughtime.cells import Cell
from throughtime.compiler.llvm.abi import WIDEST, WIDEST_ALONE
from throughtime.compiler.llvm.library import Code
from throughtime.compiler.passes import Masks
from throughtime.compiler.plan import Plan, make_plan

PANEL_VECTORS = 128
"""Of sums of U, which a panel leaves for the cell's own code: a quarter of a first-level cache."""


class Key(NamedTuple):
    """What a call's words follow from, the same for equal calls.

    Attributes:
        cell: the equations.
        masks: which it is given.
        bytes: of a number.
        rows: extent of the batch.
        team: who does it.
        sizes: directions, units, inputs.
        x, y: bytes from step to step and from row to row.
        packed: whether x holds the rows of all steps one after the other.
    """

    cell: Cell
    masks: Masks
    bytes: int
    rows: Extent
    team: Team
    sizes: tuple[int, int, int]
    x: tuple[int, int]
    y: tuple[int, int]
    packed: bool


class GradientWords(NamedTuple):
    """Words of one direction of a backward pass, made once: they name tensors of every call.

    Attributes:
        tensors: of what is saved, of gradients by x, direct inputs and sums, of norms, of gradients
            by the final states, and by those at the start.
        matrices: of gradients by them, W first.
        others: of those by biases and vectors, by their names.
        nothing: where no gradient by weights is wanted.
    """

    tensors: tuple[str, ...]
    matrices: tuple[str, ...]
    others: dict[str, str]
    nothing: dict[str, int]


def key_of(call: Call, rows: Rows, team: Team, y: Tensor) -> Key:
    """The key of a call that gives y."""
    x, packed = call.x, call.batch_sizes is not None
    sizes = call.directions, call.hidden_size, x.shape[-1]
    strides = strides_of(x, packed), strides_of(y, packed)
    return Key(
        call.cell, masks_of(call), x.element_size(), rows.extent, team, sizes, *strides, packed
    )


def shape_of(key: Key, code: Code) -> Shape:
    """The key's call, with its plan and the code that carries it."""
    plan = make_plan(key.cell, key.masks)
    gates, (_, H, I) = gate_numbers(plan, key.cell), key.sizes
    widths, parameters = widths_for(key.cell, H, key.masks), parameters_of(key.cell, I, H)
    batch = key.rows, key.team, *key.sizes, key.x, key.y, key.packed
    return Shape(plan, code, *batch, gates, widths, parameters)


@dataclass(frozen=True)
class Shape:
    """What the words of a call follow from.

    Attributes:
        plan: of the cell.
        code: forward or backward.
        rows: extent of the batch.
        team: who does it.
        D, H, I: directions, units, inputs.
        x, y: bytes from step to step and from row to row.
        packed: whether x holds the rows of all steps one after the other.
        gates: for each sum, its gate's number in W and in U.
        widths: of states, sums and matrices.
        parameters: as the look at them takes them.
    """

    plan: Plan
    code: Code
    rows: Extent
    team: Team
    D: int
    H: int
    I: int
    x: tuple[int, int]
    y: tuple[int, int]
    packed: bool
    gates: tuple[list[int], list[int]]
    widths: UnitCounts
    parameters: Parameters

    @property
    def H_row(self) -> int:
        """Bytes of a padded row of units, the same for all widths."""
        return self.row(self.widths.line)

    def row(self, units: int) -> int:
        """Bytes of so many units in whole vectors."""
        return whole_vectors(units, self.code.kind.lanes) * self.code.kind.bytes

    @property
    def units(self) -> int:
        """H, padded to whole vectors."""
        return self.H_row // self.code.kind.bytes

    @cached_property
    def nothing(self) -> dict[str, int]:
        """Words that are addresses of what a call may give, where it gives none of it."""
        names = ["weight_ih", "bias_ih", "bias_hh", "inputs", "resets", "traces"]
        names += [f"matrix{m}" for m in range(len(self.widths.shapes))]
        names += [f"start{s}" for s in range(len(self.plan.state_names))]
        return {f"{name} {d}": 0 for d in range(self.D) for name in names}

    @cached_property
    def gradient_words(self) -> tuple[GradientWords, ...]:
        """Of each direction."""
        ends = [f"d_{e}{s}" for e in ("final", "start") for s in range(len(self.plan.state_names))]
        tensors = ("saved", "d_x", "d_inputs", "d_bias", "norms", *ends)
        most = self.parameters[max(self.parameters)][0]
        vectors = ("bias_ih", "bias_hh", *(p.name for p in most if len(p.shape) == 1))
        each = []
        for d in range(self.D):
            matrices = [f"d_W {d}", *(f"d_matrix{m} {d}" for m in range(len(self.widths.shapes)))]
            others = {name: f"d_{name} {d}" for name in vectors}
            nothing = dict.fromkeys((*matrices, *others.values()), 0)
            words = tuple(f"{name} {d}" for name in tensors)
            each.append(GradientWords(words, tuple(matrices), others, nothing))
        return tuple(each)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Those that the cell's code is given, after the units of its widths."""
        return tuple(self.plan.numbers(self.code.kind.bytes))

    @cached_property
    def saved(self) -> tuple[int, int]:
        """Values and padded units of a row of what the forward pass keeps."""
        return self.plan.saved_size(self.units), self.units

    @property
    def I_row(self) -> int:
        """Bytes of a padded row of the input."""
        return self.row(self.I)

    def packed_rows(self, **more: int) -> dict[str, int]:
        """Bytes from row to row of packed tensors by name; none where they are not packed."""
        return {"x": self.x[1], "y": self.y[1], **more} if self.packed else {}

    @property
    def is_row(self) -> bool:
        """Whether no chunk has more than one row."""
        return self.rows.widest_chunk(self.team.chunks) == 1

    @property
    def widest(self) -> int:
        """Vectors of the widest tile of U."""
        return WIDEST_ALONE if self.is_row else WIDEST

    @property
    def panel(self) -> int:
        """Unit blocks in a panel of U: so many that its vectors make a tile; all without U.

        One row alone has all that a member has, or so many that their sums stay in the nearest
        cache: the cell's code then runs on many units at once, and none waits for another.
        """
        gates, blocks = len(self.plan.last), max(1, self.H_row // self.code.kind.size)
        if not gates:
            return blocks
        if not self.is_row:
            return max(1, WIDEST // gates)
        own = -(-blocks // self.team.members)
        return -(-own // -(-own * gates // PANEL_VECTORS))


def gate_numbers(plan: Plan, cell: Cell) -> tuple[list[int], list[int]]:
    """For each sum, the number of its gate among the rows of W and of U; -1 where it has none."""
    a = {g: i for i, g in enumerate(cell.layout.input_gates)}
    u = {g: i for i, g in enumerate(cell.layout.recurrent_gates)}
    return [a.get(s.a or "", -1) for s in plan.sums], [u.get(s.u or "", -1) for s in plan.sums]
