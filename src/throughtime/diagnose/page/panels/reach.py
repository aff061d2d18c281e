"""Panel 1: how far back it learns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from throughtime.diagnose.page.chart import Chart
from throughtime.diagnose.page.panel import Panel, Table, label, numbered, parts

if TYPE_CHECKING:
    from throughtime.diagnose.lag_gradient import LagGradient
    from throughtime.diagnose.report import Report

FLOOR = math.log10(2.0**-126)
"""log10 of the smallest normal number of float32."""


def panel(report: Report) -> Panel:
    """log10 rho(k) of each layer and direction, with its horizons."""
    return Panel(
        number=1,
        title="How far back does it learn?",
        lead="The gradient k steps before the last one, against that of the last step; only the "
        "loss of the last step counts. Diamonds: the horizons K(1/e) and K(1/1000).",
        says=tuple(map(_sentence, report.lag_gradients)),
        charts=(_chart(report),),
        tables=(_summary(report), _by_lag(report)),
    )


def _sentence(g: LagGradient) -> str:
    where, last = label(g.name, g.layer, g.direction), len(g.log10_rho_by_lag) - 1
    if g.horizon_1e3_steps is None:
        said = f"{where}: above 1/1000 in all {last} lags"
    else:
        said = f"{where}: below 1/1000 from {g.horizon_1e3_steps} steps back on"
    zeros = f"; {g.zero_share:.0%} of the gradients are exactly zero" if g.zero_share else ""
    return f"{said}, {g.slope_nats_per_step:+.3f} nats a step{zeros}."


def _chart(report: Report) -> Chart:
    chart = Chart("log10 of the gradient by lag, one curve a layer", "lag k, steps", "log₁₀ ρ(k)")
    known = parts(report)
    lowest, highest = -3.4, 0.3
    for g in report.lag_gradients:
        part, rho = known[g.name, g.layer, g.direction], g.log10_rho_by_lag
        chart.line(part.label, range(len(rho)), rho, part.number)
        at = [k for k in (g.horizon_e_steps, g.horizon_1e3_steps) if k is not None]
        seen = [k for k in at if math.isfinite(rho[k])]
        if seen:
            chart.points(
                f"{part.label}, horizons", seen, [rho[k] for k in seen], part.number, "diamond"
            )
            chart.figure.data[-1].showlegend = False
        finite = [v for v in rho if math.isfinite(v)]
        lowest, highest = min(lowest, *finite), max(highest, *finite)
    chart.mark_y(math.log10(math.exp(-1)), "1/e")
    chart.mark_y(-3.0, "1/1000")
    chart.mark_y(FLOOR, "float32 ends here")
    chart.mark_x(report.lag, "task lag")
    room = 0.04 * (highest - lowest)
    chart.axes(y={"range": [lowest - room, highest + room]})
    return chart


def _summary(report: Report) -> Table:
    head = ("layer", "K(1/e), steps", "K(1e-3), steps", "slope, nats a step", "zeros, share", "Ω")
    rows = (
        (label(g.name, g.layer, g.direction), g.horizon_e_steps, g.horizon_1e3_steps,
         g.slope_nats_per_step, g.zero_share, g.omega)
        for g in report.lag_gradients
    )  # fmt: skip
    return Table("Horizons; none: nothing in the sequence lies beyond it", head, tuple(rows))


def _by_lag(report: Report) -> Table:
    names = (label(g.name, g.layer, g.direction) for g in report.lag_gradients)
    curves = [g.log10_rho_by_lag for g in report.lag_gradients]
    return Table("log₁₀ ρ(k)", ("k", *names), numbered(curves))
