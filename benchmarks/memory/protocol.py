"""What each bar asks: task, length, cap, cells, and the cases that make it fair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.memory.learn import Case

OURS = {"rnn": "orthogonal", "lstm": "timescales", "gru": "timescales"}
SWEEP = (5e-4, 1e-3, 5e-3)  # beside the bar's own 2e-3
WRONG = (0.1, 0.3, 1.0, 10.0)  # times the true length; ours is told 3 times it
TRAPS = ("leak", "ours T_max", "default lr")  # with fewer seeds where a run is dear


class Bar(NamedTuple):
    """A learning bar.

    Attributes:
        task, length, cap: what is learned, over how many steps, in how many steps of training.
        cells, hidden: with which, and how many units.
        default_above: torch's start must keep every error at least so high.
        blind_above: with the label hidden every error must stay above this, a little below chance.
        ours_of_five: on so many of five seeds ours must solve it.
        solved: the error from which it counts as solved.
        stop: the error on the validation split at which a run ends.
        sooner: ours needs at most this share of the steps of forget bias 1, as means over seeds.
        beats: ours must be better than torch's start by more than so many deviations of the seeds.
        unclipped: ours is also trained without clipping, and must solve it so too.
        trap_seeds: so many seeds in the leak test and the fairness rows.
    """

    task: str
    length: int
    cap: int
    cells: tuple[str, ...]
    default_above: float
    blind_above: float
    ours_of_five: int
    solved: float = 0.02
    hidden: int = 32
    stop: float = 0.01
    sooner: float | None = None
    beats: float | None = None
    unclipped: bool = False
    trap_seeds: int = 5

    def cases(self) -> Iterator[tuple[str, Case]]:
        """Every row: default, forget bias 1, ours, then the leak test and the fairness rows."""
        for cell in self.cells:
            yield "default", self._plain(cell)
            if cell != "rnn":
                yield "forget", self._plain(cell)._replace(start="forget")
            yield "ours", self._ours(cell)
        for cell in self.cells if self.unclipped else ():
            yield "ours unclipped", self._ours(cell)._replace(clip=0.0)
        for cell in self.cells:
            yield "leak", self._ours(cell)._replace(leak=True)
        for cell in self.cells:
            for times in WRONG if cell != "rnn" else ():
                horizon = round(times * self.length)
                yield "ours T_max", self._ours(cell)._replace(horizon=horizon)
            for lr in SWEEP:
                yield "default lr", self._plain(cell)._replace(lr=lr)

    def _plain(self, cell: str) -> Case:
        return Case(
            self.task, self.length, self.cap, cell, "torch", hidden=self.hidden, stop=self.stop
        )

    def _ours(self, cell: str) -> Case:
        return self._plain(cell)._replace(start=OURS[cell])


BARS = {
    "2": Bar("latch", 100, 300, ("rnn", "lstm", "gru"), 0.40, 0.40, 5, unclipped=True),
    "3": Bar("latch", 500, 400, ("lstm",), 0.40, 0.40, 4),
    "4": Bar(
        "adding", 100, 2000, ("lstm",), 0.15, 0.15, 4, hidden=64, unclipped=True, sooner=0.8,
        trap_seeds=1,
    ),
    "5": Bar("order", 100, 700, ("lstm",), 0.60, 0.60, 4),
    "8b": Bar(
        "mnist1d", 40, 1000, ("lstm",), 0.0, 0.85, 0, hidden=64, stop=0.0, beats=2.0,
        trap_seeds=1,
    ),
}  # fmt: skip
