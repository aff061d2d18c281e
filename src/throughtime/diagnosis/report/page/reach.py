"""Panel 1: how far back it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnosis.report import Report, make_label
from throughtime.diagnosis.report.chart import Chart
from throughtime.diagnosis.report.page import Panel, Table, list_absent, list_parts, number_rows

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.lag_gradient import LagGradient


FLOOR = math.log10(2.0**-126)
"""log10 of the smallest normal number of float32."""


QUANTITIES = ("lag_gradients",)
QUESTION = Panel(
    number=1,
    title="How far back does it learn?",
    lead="The gradient k steps before the last one, against that of the last step; only the loss "
    "of the last step counts. Diamonds: the horizons K(1/e) and K(1/1000). Grey ground: the "
    "spread over batches. Grey line: torch's own start, same sizes.",
    units=(
        ("ρ(k)", "size of the gradient k steps back over that of the last step; log₁₀ ρ is 0 "
         "where it arrives whole and -3 where a thousandth does."),
        ("nats a step", "slope of ln ρ: -0.1 means 10 % less with each step back, -0.7 half."),
    ),
)  # fmt: skip


def panel(report: Report) -> Panel:
    """log10 rho(k) of each layer and direction, with its horizons."""
    if not report.lag_gradients:
        return QUESTION
    tables = [*_tables("", report.lag_gradients)]
    if report.torch_default:
        tables += _tables(" of torch's own start", report.torch_default)
    if report.bands:
        tables.append(_spread(report))
    return replace(
        QUESTION,
        says=(
            *map(_sentence, report.lag_gradients),
            *_name_unseen(report),
            *_count_rows(report),
            *list_absent(report, "bands", what="Spread"),
            *list_absent(report, "torch_default", what="torch's own start"),
        ),
        charts=(_chart(report),),
        tables=tuple(tables),
    )


def _sentence(g: LagGradient) -> str:
    where, last = make_label(g.key), len(g.log10_rho_by_lag) - 1
    if g.horizon_1e3_steps is None:
        words = f"{where}: above 1/1000 in all {last} lags"
    else:
        words = f"{where}: below 1/1000 after {g.horizon_1e3_steps} steps"
    zeros = f"; {g.zero_share:.0%} of the gradients are exactly zero" if g.zero_share else ""
    return f"{words}, {g.slope_nats_per_step:+.3f} nats a step{zeros}."


def _name_unseen(report: Report) -> Iterator[str]:
    """What has no curve, since the loss does not see it."""
    for u in report.unseen:
        reading = f"reads it after {u.read_steps} of its {u.steps} steps at the latest"
        yield (
            f"{make_label(u.key)}: no curve, for the loss "
            f"{reading if u.read_steps else 'depends on nothing of it'}."
        )


def _count_rows(report: Report) -> Iterator[str]:
    """How many rows count, where not all do at every lag."""
    for g in report.lag_gradients:
        rows = g.rows_by_lag
        if rows and (rows[0] < report.rows or rows[-1] < rows[0]):
            yield (
                f"{make_label(g.key)}: each row counts its lags from its "
                f"own end, {rows[0]} of {report.rows} rows at lag 0 and {rows[-1]} at lag "
                f"{len(rows) - 1}."
            )


def _chart(report: Report) -> Chart:
    chart = Chart("log10 of the gradient by lag, one curve a layer", "lag k, steps", "log₁₀ ρ(k)")
    for i, band in enumerate(report.bands):
        low, high = band.lowest_log10_rho_by_lag, band.highest_log10_rho_by_lag
        chart.band(f"{band.batches} batches", range(len(low)), low, high, shown=i == 0)
    for i, g in enumerate(report.torch_default):
        rho = g.log10_rho_by_lag
        chart.line("torch's start", range(len(rho)), rho, None, shown=i == 0)
    known = list_parts(report)
    for g in report.lag_gradients:
        part, rho = known[g.key], g.log10_rho_by_lag
        chart.line(part.label, range(len(rho)), rho, part.number)
        horizons = (g.horizon_e_steps, g.horizon_1e3_steps)
        at = [k for k in horizons if k is not None and math.isfinite(rho[k])]
        if at:
            chart.points(f"{part.label}, horizon", at, [rho[k] for k in at], part.number,
                         symbol="diamond", shown=False)  # fmt: skip
    chart.mark_y(math.log10(math.exp(-1)), "1/e")
    chart.mark_y(-3.0, "1/1000")
    chart.mark_y(FLOOR, "float32 ends here")
    chart.mark_x(report.lag, f"task lag {report.lag}")
    chart.axes(y={"range": _range(report)})
    return chart


def _range(report: Report) -> list[float]:
    """From the least to the greatest that is drawn, the marks 1/e and 1/1000 among it."""
    curves = [g.log10_rho_by_lag for g in (*report.lag_gradients, *report.torch_default)]
    finite = [v for curve in curves for v in curve if math.isfinite(v)]
    lowest, highest = min(-3.4, *finite), max(0.3, *finite)
    room = 0.04 * (highest - lowest)
    return [lowest - room, highest + room]


def _tables(whose: str, gradients: Sequence[LagGradient]) -> tuple[Table, Table]:
    """Horizons and slopes; then the curves."""
    head = ("layer", "K(1/e), steps", "K(1e-3), steps", "slope, nats a step", "zeros, share", "Ω")
    names = [make_label(g.key) for g in gradients]
    rows = (
        (name, g.horizon_e_steps, g.horizon_1e3_steps, g.slope_nats_per_step, g.zero_share, g.omega)
        for name, g in zip(names, gradients, strict=True)
    )
    return (
        Table(f"Horizons{whose}; none: not in this sequence", head, tuple(rows)),
        Table(f"log₁₀ ρ(k){whose}", ("k", *names),
              number_rows([g.log10_rho_by_lag for g in gradients])),
    )  # fmt: skip


def _spread(report: Report) -> Table:
    ends = [
        (f"{make_label(b.key)} {word}", values)
        for b in report.bands
        for word, values in (
            ("least", b.lowest_log10_rho_by_lag), ("greatest", b.highest_log10_rho_by_lag)
        )
    ]  # fmt: skip
    caption = f"log₁₀ ρ(k) over {report.bands[0].batches} batches"
    return Table(caption, ("k", *(n for n, _ in ends)), number_rows([v for _, v in ends]))
