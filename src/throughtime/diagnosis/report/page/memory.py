"""Panel 5: what it remembers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnosis.report.chart import Chart
from throughtime.diagnosis.report.page import Panel, PanelPart, Table, list_parts, number_rows, show

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.capacity import MemoryCapacity
    from throughtime.diagnosis.report import Report


QUANTITIES = ("capacities",)
QUESTION = Panel(
    number=5,
    title="What does it remember?",
    lead="Noise fed in and read back from the state k steps later by a linear read-out: r² on "
    "steps held out. A layer may have much of this and little of panel 1's reach, or the reverse.",
    units=(
        ("r²(k)", "share of the input k steps ago that the state holds: 1 all, 0 nothing."),
        ("capacity", "the sum of r² over all lags: how many past inputs it holds, in numbers."),
    ),
)
HALF = 0.5


def panel(report: Report) -> Panel:
    """r^2 by lag of each layer and direction."""
    known = list_parts(report)
    results = [(known[c.key], c) for c in report.capacities]
    if not results:
        return QUESTION
    return replace(
        QUESTION,
        says=tuple(_sentence(part, c, report.lag) for part, c in results),
        charts=(_chart(results, report.lag),),
        tables=(_summary(results), _by_lag(results)),
    )


def _sentence(part: PanelPart, c: MemoryCapacity, lag: int) -> str:
    steps = f"{c.memory_steps} step{'s' if c.memory_steps != 1 else ''}"
    far = "nothing" if c.memory_steps < 0 else steps
    more = "" if c.lags_suffice else " or more, for the last lag still counts"
    at = f"; r² is {show(c.r2_by_lag[lag])} at the lag of {lag}" if lag < len(c.r2_by_lag) else ""
    return (
        f"{part.label}: remembers {far} (r² above 0.5); its capacity is {show(c.capacity)}{more}, "
        f"of at most {c.state_width}{at}."
    )


def _chart(results: list[tuple[PanelPart, MemoryCapacity]], lag: int) -> Chart:
    chart = Chart("share of past input that the state holds, by lag", "lag k, steps", "r²(k)")
    for part, c in results:
        chart.line(part.label, range(len(c.r2_by_lag)), c.r2_by_lag, part.number)
    remembered = [k for _, c in results for k, r2 in enumerate(c.r2_by_lag) if r2]
    # Beyond the last that is remembered, or the lag, all are zeros.
    end = min(1 + max([lag, *remembered]), max(len(c.r2_by_lag) for _, c in results) - 1)
    chart.axes(x={"range": [0, end]}, y={"range": [-0.03, 1.05]})
    chart.mark_y(HALF, "0.5")
    chart.mark_x(lag, f"task lag {lag}")
    return chart


def _summary(results: list[tuple[PanelPart, MemoryCapacity]]) -> Table:
    head = ("layer", "capacity", "at most", "remembers, steps", "noise line", "steps held out")
    rows = (
        (p.label, c.capacity, c.state_width, c.memory_steps, c.noise_line, c.held_out_steps)
        for p, c in results
    )
    return Table("Memory capacity; -1 step: nothing is remembered", head, tuple(rows))


def _by_lag(results: list[tuple[PanelPart, MemoryCapacity]]) -> Table:
    return Table("r²(k)", ("k", *(p.label for p, _ in results)),
                 number_rows([c.r2_by_lag for _, c in results]))  # fmt: skip
