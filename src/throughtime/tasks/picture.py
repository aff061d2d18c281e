"""What a task shows of a run on its page, as plain numbers: it draws nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Numbers = Sequence[float]


@dataclass(frozen=True)
class Curve:
    """Numbers over numbers.

    Attributes:
        name: as the legend has it.
        x, y: as many of each.
        kind: a line, points, or the ground between y and `high`.
        high: of the ground, its upper edge.
        beside: what the run's own is compared with; drawn in grey.
    """

    name: str
    x: Numbers
    y: Numbers
    kind: Literal["line", "points", "band"] = "line"
    high: Numbers = ()
    beside: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves on two axes, or a map of colours.

    Attributes:
        says: what it shows, for those who do not see it.
        x, y: the axes with their units.
        curves: what is drawn; for a map nothing.
        rows: of a map, the name of each row and its numbers; its columns are numbered from 0.
        line: a height to be marked, with its words.
        of: whose it is, above it.
    """

    says: str
    x: str
    y: str
    curves: tuple[Curve, ...] = ()
    rows: tuple[tuple[str, Numbers], ...] = ()
    line: tuple[float, str] | None = None
    of: str = ""


@dataclass(frozen=True)
class Picture:
    """A question to a run, and its answer.

    Attributes:
        title: the question.
        lead: how to read the plots.
        says: the answer, a sentence each.
        plots: in their order.
        head, table: all numbers.
    """

    title: str
    lead: str
    says: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    head: tuple[str, ...] = ()
    table: tuple[tuple[str | float, ...], ...] = ()
