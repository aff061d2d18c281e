"""Panel 4: time scales of the gates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from throughtime.diagnosis.report.chart import Chart, list_powers
from throughtime.diagnosis.report.page import Panel, PanelPart, Table, list_parts, number_rows, show

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.gates import GateTimes
    from throughtime.diagnosis.report import Report


QUANTITIES = ("gates", "modules")
QUESTION = Panel(
    number=4,
    title="How long do the units keep what they hold?",
    lead="Above, units by time scale τ, after which 1/e of what they hold is left; those right of "
    "the task lag bridge it. Below, the share of values at either end of each gate (0.05, 0.95) or "
    "tanh (±0.95), where it learns slowly.",
    units=(
        ("τ", "time scale, steps: how long a unit keeps what it holds until 1/e, 37 %, is left."),
        ("low, high end", "a gate at its end is shut or open whatever comes, and its gradient is "
         "small."),
    ),
)  # fmt: skip
BINS_A_DECADE, SHORTEST = 10, 0.1
"""Bins of the histogram; time scales shorter than this many steps are in the first."""


def panel(report: Report) -> Panel:
    """Histogram of the time scales, saturation of the gates, dead units."""
    known = list_parts(report)
    results = [(known[m.name, g.layer, g.direction], g) for m in report.modules for g in m.gates]
    if not results:
        return QUESTION
    return replace(
        QUESTION,
        says=tuple(_sentence(part, g, report.lag) for part, g in results),
        charts=(_histogram(results, report.lag), _ends(results)),
        tables=(_summary(results, report.lag), _saturation(results), _units(results)),
    )


def _sentence(part: PanelPart, g: GateTimes, lag: int) -> str:
    dead = len(g.dead_units)
    still = f"; {dead} of {len(g.unit_deviations)} units are dead" if dead else ""
    source = "" if g.kind == "gate" else " (no gate keeps; τ of the mean Jacobian's eigenvalues)"
    middle = f"half of the time scales are above {show(median(g.tau_steps))} steps, "
    return (
        f"{part.label}: {middle if g.tau_steps else ''}{g.share_above(lag):.0%} above the lag of "
        f"{lag}{source}{still}."
    )


def _histogram(results: list[tuple[PanelPart, GateTimes]], lag: int) -> Chart:
    """Bins of a tenth of a decade, one of which ends at the lag, so that no bar crosses it."""
    chart = Chart("units by time scale", "time scale τ, steps (log scale)", "units")
    finite = [t for _, g in results for t in g.tau_steps if 0 < t < math.inf]
    low = max(SHORTEST, min([lag, *finite]))
    first, last = _bin(low, lag), _bin(max([lag, *finite]), lag)
    beyond = last + 3
    endless = any(tau == math.inf for _, g in results for tau in g.tau_steps)
    for part, g in results:
        bins = Counter(beyond if tau == math.inf else max(first, _bin(tau, lag) if tau else first)
                       for tau in g.tau_steps)  # fmt: skip
        chart.bars(part.label, [_place(b + 0.5, lag) for b in sorted(bins)],
                   [bins[b] for b in sorted(bins)], part.number, width=0.9 / BINS_A_DECADE,
                   words=[_span(b, lag, b == beyond) for b in sorted(bins)])  # fmt: skip
    chart.mark_x(math.log10(lag), f"task lag {lag}")
    ticks = list_powers(10 ** _place(first, lag), 10 ** _place(last, lag), logs=True)
    if endless:
        ticks["tickvals"].append(_place(beyond + 0.5, lag))
        ticks["ticktext"].append("∞")
    ends = [_place(first, lag), _place(beyond + 1 if endless else last + 1, lag)]
    chart.axes(x={"tickmode": "array", **ticks, "range": ends}, y={"rangemode": "tozero"})
    return chart


def _bin(tau: float, lag: int) -> int:
    """Its number, from 0 on above the lag."""
    return math.ceil(BINS_A_DECADE * math.log10(tau / lag)) - 1


def _place(edge: float, lag: int) -> float:
    """log10 of the time scale at which a bin begins."""
    return math.log10(lag) + edge / BINS_A_DECADE


def _span(number: int, lag: int, endless: bool) -> str:
    """What a bin counts."""
    if endless:
        return "τ without end"
    return f"τ {10 ** _place(number, lag):.3g} to {10 ** _place(number + 1, lag):.3g} steps, units"


def _ends(results: list[tuple[PanelPart, GateTimes]]) -> Chart:
    gates = [(f"{part.label} {s.name}", s) for part, g in results for s in g.saturation]
    chart = Chart(
        "share of values at either end of each gate", "share of values", "",
        height=120 + 18 * len(gates),
    )  # fmt: skip
    rows = range(len(gates))
    chart.bars("low end", [s.share_low for _, s in gates], rows, 0, sideways=True)
    chart.bars("high end", [s.share_high for _, s in gates], rows, 1, sideways=True)
    chart.rows([name for name, _ in gates])
    most = max([s.share_low + s.share_high for _, s in gates], default=0)
    chart.axes(x={"range": [0, max(0.1, most)], "tickformat": ".0%"})
    return chart


def _summary(results: list[tuple[PanelPart, GateTimes]], lag: int) -> Table:
    head = ("layer", "τ from", f"share above {lag} steps", "dead units", "which")
    rows = (
        (p.label, g.kind, g.share_above(lag), len(g.dead_units), ", ".join(map(str, g.dead_units)))
        for p, g in results
    )
    return Table("Time scales", head, tuple(rows))


def _saturation(results: list[tuple[PanelPart, GateTimes]]) -> Table:
    head = ("layer", "of", "function", "share low", "share high")
    rows = (
        (p.label, s.name, s.function, s.share_low, s.share_high)
        for p, g in results
        for s in g.saturation
    )
    return Table("Saturation: below 0.05 (tanh −0.95) and above 0.95", head, tuple(rows))


def _units(results: list[tuple[PanelPart, GateTimes]]) -> Table:
    """Time scales and deviations; a time scale is no unit's where eigenvalues give it."""
    columns = [c for _, g in results for c in (g.tau_steps, g.unit_deviations)]
    head = [f"{p.label} {word}" for p, _ in results for word in ("τ, steps", "deviation")]
    return Table(
        "Each time scale, and each unit's deviation", ("number", *head), number_rows(columns)
    )
