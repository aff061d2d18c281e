"""What each bar asks: task, length, cap, cells, and the cases that make it fair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.memory.learn import Case

OURS = {"rnn": "orthogonal", "lstm": "timescales", "gru": "timescales"}
SWEEP = (5e-4, 1e-3, 5e-3)  # beside the bar's own 2e-3
WRONG = (0.1, 0.3, 3.0, 10.0)  # times the true length


class Bar(NamedTuple):
    """A learning bar.

    Attributes:
        task, length, cap: what is learned, over how many steps, in how many steps of training.
        cells: with which.
        default_above: torch's start must keep every error at least so high.
        ours_of_five: on so many of five seeds ours must solve it.
        solved: the error from which it counts as solved.
    """

    task: str
    length: int
    cap: int
    cells: tuple[str, ...]
    default_above: float
    ours_of_five: int
    solved: float = 0.02

    def cases(self) -> Iterator[tuple[str, Case]]:
        """Every row: default, forget bias 1, ours, then the leak test and the fairness rows."""
        for cell in self.cells:
            yield "default", self._plain(cell)
            if cell != "rnn":
                yield "forget", self._plain(cell)._replace(start="forget")
            yield "ours", self._ours(cell)
        for cell in self.cells:
            yield "leak", self._ours(cell)._replace(leak=True)
        for cell in self.cells:
            for times in WRONG if cell != "rnn" else ():
                horizon = round(times * self.length)
                yield "ours T_max", self._ours(cell)._replace(horizon=horizon)
            for lr in SWEEP:
                yield "default lr", self._plain(cell)._replace(lr=lr)

    def passed(self, rows: list[dict[str, Any]]) -> bool:
        """Whether the rows at the bar's own rate and length meet it, with the label hidden too."""

        def solved(row: dict[str, Any]) -> bool:
            return bool(5 * row["solved"] >= self.ours_of_five * row["seeds"])

        def of(what: str) -> list[dict[str, Any]]:
            return [row for row in rows if row["what"] == what]

        high = all(min(row["errors"]) >= self.default_above for row in of("default"))
        return high and all(map(solved, of("ours"))) and not any(r["solved"] for r in of("leak"))

    def _plain(self, cell: str) -> Case:
        return Case(self.task, self.length, self.cap, cell, "torch")

    def _ours(self, cell: str) -> Case:
        return self._plain(cell)._replace(start=OURS[cell])


BARS = {
    2: Bar("latch", 100, 300, ("rnn", "lstm", "gru"), 0.40, 5),
    3: Bar("latch", 500, 400, ("lstm",), 0.40, 4),
    5: Bar("order", 100, 700, ("lstm",), 0.60, 4),
}
