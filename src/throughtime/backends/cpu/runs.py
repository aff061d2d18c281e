"""The runs of a call's sums, in the order in which forward and backward multiply them.

A run is some neighbouring sums of one phase: as many words as `RUN` has names.
"""

from __future__ import annotations

from throughtime.backends.cpu.shape import Shape
from throughtime.backends.cpu.template import Template
from throughtime.compiler.llvm.block import RUN
from throughtime.compiler.llvm.tile_sizes import WIDEST, part_sizes
from throughtime.compiler.phases import Phase


def set_runs(template: Template, words: list[int]) -> None:
    """The runs, of which the last comes behind all early ones."""
    template.set_common("runs", template.list_of(words))
    template.set_common("early", len(words) // len(RUN) - 1)


def early_tiles(shape: Shape) -> set[int]:
    """The widths of the tiles that their products need."""
    size = shape.code.kind.size
    runs = (run for phase in shape.plan.early for run in runs_of(shape, phase))
    counts = {count * shape.row(_lines(shape, line)) // size for line, count in runs}
    return {v for count in counts for v in part_sizes(count, WIDEST)}


def runs_of(shape: Shape, phase: Phase) -> list[tuple[int, int]]:
    """A phase's sums as runs: the first one's number, and how many. One matrix has given all, and
    their units lie side by side without a gap."""
    widths, found = shape.widths, list[tuple[int, int]]()
    for place in phase.places:
        whole = shape.row(widths.sums[place]) == shape.H_row and widths.blocks[place] == 1
        if found and whole and sum(found[-1]) == place:
            line, count = found[-1]
            if widths.matrices[line] == widths.matrices[place]:
                found[-1] = (line, count + 1)
                continue
        found.append((place, 1))
    return found


def packed_forward(shape: Shape) -> int:
    """Bytes of the matrices of all runs but those of the fused phase."""
    return sum(_packed_forward(shape, *run) for p in shape.plan.early for run in runs_of(shape, p))


def packed_backward(shape: Shape) -> int:
    """Bytes of the matrices of all runs, packed for the product with their transpose."""
    return sum(
        _packed_backward(shape, *run) for p in shape.plan.phases for run in runs_of(shape, p)
    )


def _packed_forward(shape: Shape, line: int, count: int) -> int:
    one = shape.row(_lines(shape, line)) * shape.widths.sources[line]
    return count * shape.widths.blocks[line] * one


def _packed_backward(shape: Shape, line: int, count: int) -> int:
    return count * shape.widths.sums[line] * shape.row(shape.widths.sources[line])


def _lines(shape: Shape, line: int) -> int:
    """Of one block of a sum's matrix."""
    return shape.widths.sums[line] // shape.widths.blocks[line]


def runs_forward(shape: Shape) -> list[int]:
    """All runs but those of the fused phase, and what to do before its panels."""
    words: list[int] = []
    packed = 0
    for phase in shape.plan.early:
        for run in runs_of(shape, phase):
            words += _run(shape, phase, run, packed)
            packed += _packed_forward(shape, *run)
    last = shape.plan.fused
    nothing = [0] * len(RUN)
    return words + (_run(shape, last[0], (last[0].places[0], 0), packed) if last else nothing)


def runs_backward(shape: Shape) -> list[int]:
    """The runs from the last phase to the first; the cell's own function before the old output's,
    which is there, if need be without sums."""
    words: list[int] = []
    packed = 0
    for phase in reversed(shape.plan.own):
        for run in runs_of(shape, phase):
            words += _run(shape, phase, run, packed)
            packed += _packed_backward(shape, *run)
    first = shape.plan.phases[:1]
    there = bool(first) and not first[0].own
    for number, run in enumerate(runs_of(shape, first[0]) if there else [(0, 0)]):
        cell = 0 if number else shape.code.cell
        matrix = _matrix(shape, run[0]) if there else [0, 0, shape.widths.out, 1]
        words += [*run, packed, cell, 0, int(number == 0), 0, *matrix]
        packed += _packed_backward(shape, *run) if there else 0
    return words


def _run(shape: Shape, phase: Phase, run: tuple[int, int], packed: int) -> list[int]:
    begins = run[0] == phase.places[0]
    slot = shape.plan.own.index(phase) if phase.own else 0
    stage = shape.code.stages[slot] if phase.own and begins else 0
    return [*run, packed, stage, int(phase.own), int(begins), slot, *_matrix(shape, run[0])]


def _matrix(shape: Shape, line: int) -> list[int]:
    """The matrix of a sum, the lines of it that are the sum's, its columns, and its blocks."""
    widths = shape.widths
    own = _lines(shape, line), widths.sources[line], widths.blocks[line]
    return [widths.matrices[line], *own]
