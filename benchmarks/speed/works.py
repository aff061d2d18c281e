"""The works that are measured: what one call is, for which cells and shapes, against whom."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.speed import grid
from benchmarks.speed.figures import Mode
from benchmarks.speed.grid import Shape

BUILT_IN = ("RNN", "GRU", "LSTM")


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Attributes:
        name: as rows and bars call it.
        group: as `--work` calls it.
        mode: a training step or inference.
        cells: whose layers are measured.
        beside: the contenders beside ours, in the order they take turns.
        full, stated: the shapes of the whole grid, and those of `make bench`.
        meaning: what its numbers say, printed before them.
    """

    name: str
    group: str
    mode: Mode
    cells: tuple[str, ...]
    beside: tuple[str, ...]
    full: tuple[Shape, ...]
    stated: tuple[Shape, ...]
    meaning: str


@dataclass(frozen=True)
class Case:
    """One work on one cell at one shape: one row of the results."""

    work: Work
    cell: str
    shape: Shape

    @property
    def key(self) -> str:
        """What a resumed run finds the row by."""
        return f"{self.work.name}/{self.cell}/{self.shape.key}"

    def __str__(self) -> str:
        return f"{self.work.name} {self.cell} {self.shape}"


def cases(
    groups: list[str], cells: list[str], full: bool, shapes: list[str] | None = None
) -> list[Case]:
    """Every case of the groups and cells asked for, works in the order they stand here.

    Args:
        groups, cells: which works, on which cells.
        full: at the shapes of the whole grid.
        shapes: at these alone, wherever they stand in the grid: "16x50x128" is B, T, H.
    """
    return [
        Case(work, cell, shape)
        for work in WORKS
        if work.group in groups
        for shape in (work.full if full or shapes else work.stated)
        if not shapes or f"{shape.B}x{shape.T}x{shape.H}" in shapes
        for cell in work.cells
        if cell in cells
    ]


WORKS = (
    Work(
        "training", "training", "training", BUILT_IN, ("torch.nn",), grid.GRID, grid.STATED,
        "Training step of one layer: forward, and backward from a fixed random gradient into the\n"
        "outputs to all weights and to x (most layers stand behind others, so x needs one);\n"
        "gradients are None before each step. Ratio: torch.nn's time over ours.",
    ),
    Work(
        "inference", "inference", "inference", BUILT_IN, ("torch.nn", "onnxruntime", "openvino"),
        grid.GRID, grid.STATED,
        "Inference over whole sequences, time-major, no gradient; every program on as many\n"
        "threads as torch takes. Ratio: the time of the fastest of the others over ours.",
    ),
    Work(
        "own", "own", "training", ("own",), ("eager loop", "our LSTM"), grid.OWN, grid.OWN,
        "Training step of a user's own cell (peepholes, coupled gate): ours from its equations,\n"
        "and a loop written by hand, input product hoisted, gates in one product. Ratio: the\n"
        "loop's time over ours; the bars set our LSTM's time per flop beside it, too.",
    ),
    Work(
        "recurrent", "peak", "inference", BUILT_IN, ("peak",),
        grid.recurrent(grid.PEAK), grid.recurrent(grid.PEAK_STATED),
        "The recurrent part: inference with one input, so that the input product is 1/H of the\n"
        "recurrent one. Ratio: its flop/s over those of multiply-adds on registers, by as many\n"
        "threads, in turns with it.",
    ),
    Work(
        "whole step", "peak", "training", BUILT_IN, ("peak",), grid.PEAK, grid.PEAK_STATED,
        "The training step as a whole, as a share of the same peak.",
    ),
    Work(
        "GRU training", "gru", "training", ("GRU",), ("our LSTM",),
        grid.busy(grid.GRID), (grid.shape(16, 50, 128), grid.shape(64, 50, 256)),
        "Training step of our GRU and our LSTM. Ratio: the LSTM's time over the GRU's (their\n"
        "arithmetic: 4/3).",
    ),
    Work(
        "GRU inference", "gru", "inference", ("GRU",), ("our LSTM",),
        grid.busy(grid.GRID), (grid.shape(16, 50, 128), grid.shape(64, 50, 256)),
        "Inference of our GRU and our LSTM, likewise.",
    ),
    Work(
        "large training", "large", "training", BUILT_IN, ("torch.nn",),
        grid.LARGE, grid.LARGE[:1],
        "Training step of wide layers, where one large product a step is all there is to do.",
    ),
    Work(
        "large inference", "large", "inference", BUILT_IN, ("torch.nn",),
        grid.LARGE, grid.LARGE[:1],
        "Inference of wide layers.",
    ),
)  # fmt: skip
GROUPS = tuple(dict.fromkeys(work.group for work in WORKS)) + ("first",)
