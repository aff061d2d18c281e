"""The runs of a call's sums, in the order in which forward and backward multiply them.

A run is some neighbouring sums of one phase: as many words as `RUN` has names.
"""

from __future__ import annotations

from collections.abc import Mapping

from throughtime.backends.cpu.shape import Shape
from throughtime.backends.cpu.template import InArena, Template, Word
from throughtime.compiler.llvm.block import RUN
from throughtime.compiler.llvm.tile_sizes import WIDEST, part_sizes
from throughtime.compiler.phases import Phase


def set_runs(template: Template, words: list[int]) -> None:
    """The runs, of which the last comes behind all early ones."""
    template.set_common("runs", template.list_of(words))
    template.set_common("early", len(words) // len(RUN) - 1)


def early_tiles(shape: Shape) -> set[int]:
    """The widths of the tiles that their products need."""
    blocks = shape.H_row // shape.code.kind.size
    counts = [count for phase in shape.plan.early for _, count in phase.runs]
    return {v for count in counts for v in part_sizes(count * blocks, WIDEST)}


def runs_forward(shape: Shape) -> list[int]:
    """All runs but those of a fused phase, and what to do before its panels."""
    words: list[int] = []
    before = 0
    for phase in shape.plan.early:
        for line, count in phase.runs:
            words += _run(shape, phase, line, count, before)
            before += count
    last = shape.plan.fused
    return words + (_run(shape, last[0], last[0].places[0], 0, before) if last else [0] * len(RUN))


def runs_backward(shape: Shape) -> list[int]:
    """The runs from the last phase to the first; the cell's own function before the old output's,
    which is there, if need be without sums."""
    words: list[int] = []
    before = 0
    for phase in reversed(shape.plan.own):
        for line, count in phase.runs:
            words += _run(shape, phase, line, count, before)
            before += count
    first = shape.plan.phases[:1]
    runs = first[0].runs if first and not first[0].own else ((0, 0),)
    for number, (line, count) in enumerate(runs):
        cell = 0 if number else shape.code.cell
        words += [line, count, before, cell, 0, int(number == 0), 0]
        before += count
    return words


def _run(shape: Shape, phase: Phase, line: int, count: int, before: int) -> list[int]:
    begins = line == phase.places[0]
    slot = shape.plan.own.index(phase) if phase.own else 0
    stage = shape.code.stages[slot] if phase.own and begins else 0
    return [line, count, before, stage, int(phase.own), int(begins), slot]


def multiplied_rows(shape: Shape, places: Mapping[str, Word], plane: int) -> list[Word]:
    """For each sum with U, where the rows of a block lie that it multiplies.

    Args:
        shape: of the call.
        places: of one direction.
        plane: bytes of such rows.
    """
    plan = shape.plan
    found = {k: places["old_block"] for k in range(len(plan.sums))}
    for slot, phase in enumerate(plan.own):
        own = InArena(int(places["own_block"]) + slot * plane)
        found |= dict.fromkeys(phase.places, own)
    return [found[k] for k in range(len(plan.sums) - len(plan.with_u), len(plan.sums))]
