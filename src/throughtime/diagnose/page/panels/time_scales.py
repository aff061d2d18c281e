"""Panel 4: time scales of the gates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnose.page.chart import Chart
from throughtime.diagnose.page.panel import NOTHING, Panel, Part, Table, absent, numbered, parts

if TYPE_CHECKING:
    from throughtime.diagnose.gates import GateTimes
    from throughtime.diagnose.report import Report

ASKED = Panel(
    number=4,
    title="How long do the units keep what they hold?",
    lead="Above, units by time scale τ; those right of the task lag can bridge it. Below, the "
    "share of values at either end of each gate, where it learns slowly.",
)
BINS_A_DECADE = 4


def panel(report: Report) -> Panel:
    """Histogram of the time scales, saturation of the gates, dead units."""
    known = parts(report)
    found = [(known[m.name, g.layer, g.direction], g) for m in report.modules for g in m.gates]
    why = absent(report, "gates", "modules")
    if not found:
        return replace(ASKED, says=why or NOTHING)
    return replace(
        ASKED,
        says=(*(_sentence(part, g, report.lag) for part, g in found), *why),
        charts=(_histogram(found, report.lag), _ends(found)),
        tables=(_summary(found, report.lag), _saturation(found), _units(found)),
    )


def _sentence(part: Part, g: GateTimes, lag: int) -> str:
    dead = len(g.dead_units)
    still = f"; {dead} of {len(g.unit_deviations)} units are dead" if dead else ""
    source = "" if g.kind == "gate" else " (no gate keeps; τ of the mean Jacobian's eigenvalues)"
    return (
        f"{part.label}: {g.share_above(lag):.0%} of the time scales are above {lag} "
        f"steps{source}{still}."
    )


def _histogram(found: list[tuple[Part, GateTimes]], lag: int) -> Chart:
    chart = Chart("units by time scale", "time scale τ, steps", "units")
    finite = [t for _, g in found for t in g.tau_steps if 0 < t < math.inf]
    top = math.ceil(math.log10(max(1000.0, lag, *finite)))
    low = max(-3, math.floor(math.log10(min([0.1, *finite]))))
    for part, g in found:
        bins = Counter(_bin(tau, low, top) for tau in g.tau_steps)
        places = sorted(bins)
        chart.bars(part.label, [(b + 0.5) / BINS_A_DECADE for b in places],
                   [bins[b] for b in places], part.number)  # fmt: skip
    chart.mark_x(math.log10(lag), "task lag")
    ticks: dict[str, float] = {f"{10.0**d:g}": d for d in range(low, top + 1)}
    if any(tau == math.inf for _, g in found for tau in g.tau_steps):
        ticks["∞"] = top + 2.5 / BINS_A_DECADE
    chart.axes(x={"tickvals": list(ticks.values()), "ticktext": list(ticks), "range":
                  [low - 0.1, top + 1]})  # fmt: skip
    return chart


def _bin(tau: float, low: int, top: int) -> int:
    """Its bin of a quarter decade; what is shorter than the axis stands first, infinity last."""
    if tau == math.inf:
        return top * BINS_A_DECADE + 2
    return math.floor(max(low, math.log10(tau) if tau > 0 else low) * BINS_A_DECADE)


def _ends(found: list[tuple[Part, GateTimes]]) -> Chart:
    gates = [(f"{part.label} {s.name}", s) for part, g in found for s in g.saturation]
    chart = Chart(
        "share of values at either end of each gate", "share of values", "",
        height=120 + 18 * len(gates),
    )  # fmt: skip
    rows = range(len(gates))
    chart.bars("shut (below 0.05)", [s.share_low for _, s in gates], rows, 0,
               sideways=True)  # fmt: skip
    chart.bars("open (above 0.95)", [s.share_high for _, s in gates], rows, 1, sideways=True)
    chart.rows([name for name, _ in gates])
    chart.axes(x={"range": [0, 1], "tickformat": ".0%"})
    return chart


def _summary(found: list[tuple[Part, GateTimes]], lag: int) -> Table:
    head = ("layer", "τ from", f"share above {lag} steps", "dead units", "which")
    rows = (
        (p.label, g.kind, g.share_above(lag), len(g.dead_units), ", ".join(map(str, g.dead_units)))
        for p, g in found
    )
    return Table("Time scales", head, tuple(rows))


def _saturation(found: list[tuple[Part, GateTimes]]) -> Table:
    head = ("layer", "of", "function", "share low", "share high")
    rows = (
        (p.label, s.name, s.function, s.share_low, s.share_high)
        for p, g in found
        for s in g.saturation
    )
    return Table("Saturation: below 0.05 (tanh −0.95) and above 0.95", head, tuple(rows))


def _units(found: list[tuple[Part, GateTimes]]) -> Table:
    """Time scales and deviations; a time scale is no unit's where eigenvalues give it."""
    columns = [c for _, g in found for c in (g.tau_steps, g.unit_deviations)]
    head = [f"{p.label} {word}" for p, _ in found for word in ("τ, steps", "deviation")]
    return Table("Each time scale, and each unit's deviation", ("number", *head), numbered(columns))
