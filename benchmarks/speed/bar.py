"""A bar: what must be reached, and whether the rows of a run reach it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.speed.row import Row
from benchmarks.speed.spread import geometric_mean

Over = Literal["geometric mean", "lowest", "highest"]
Wants = Callable[[Row], bool]
Value = Callable[[Row], float]


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        text: what is asked.
        wants: which rows it is asked of.
        value: the row's number.
        over: which number of them all counts; "highest" must be at most the goal, the others at
            least.
        goal: the bar itself.
    """

    text: str
    wants: Wants
    value: Value
    over: Over
    goal: float

    @property
    def goal_text(self) -> str:
        """The goal with its direction."""
        return f"{'at most' if self.over == 'highest' else 'at least'} {self.goal:g}"


@dataclass(frozen=True)
class Verdict:
    """What the rows say to a bar.

    Attributes:
        met: None: no row was measured.
        got: the number that counts, None where no row has one.
        shapes: rows that have a number.
        red: rows without one, since parity is red: they miss the bar.
        worst: key of the row furthest from the goal.
    """

    bar: Bar
    met: bool | None
    got: float | None
    shapes: int
    red: int
    worst: str

    def __str__(self) -> str:
        if self.got is None:
            return "not measured" if self.met is None else f"not met: all {self.red} rows red"
        share = abs(self.got / self.bar.goal - 1)
        side = "past" if self.met or self._reached() else "short of"
        red = f"{self.red} red; " if self.red else ""
        return (
            f"{'met' if self.met else 'NOT MET'}: {self.got:.3g}, {share:.0%} {side} it "
            f"({red}worst {self.worst})"
        )

    def _reached(self) -> bool:
        return self.got is not None and reached(self.bar, self.got)


def judge(bar: Bar, rows: list[Row]) -> Verdict:
    """One bar over the rows of a run."""
    wanted = [row for row in rows if bar.wants(row)]
    # A first use has no parity of its own; all else has ratios unless ours is red.
    values = {row["key"]: bar.value(row) for row in wanted if row.get("ratios", True)}
    red = len(wanted) - len(values)
    if not values:
        return Verdict(bar, False if red else None, None, 0, red, "")
    worst = (max if bar.over == "highest" else min)(values, key=lambda key: values[key])
    got = geometric_mean(list(values.values())) if "mean" in bar.over else values[worst]
    return Verdict(bar, reached(bar, got) and not red, got, len(values), red, worst)


def reached(bar: Bar, got: float) -> bool:
    """Whether a number is on the right side."""
    return got <= bar.goal if bar.over == "highest" else got >= bar.goal
