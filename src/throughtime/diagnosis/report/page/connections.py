"""Panel 2: who talks to whom."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnosis.report.chart import Chart
from throughtime.diagnosis.report.page import Panel, Table, number_rows, show

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.connectivity import Connectivity
    from throughtime.diagnosis.report import Report


QUANTITIES = ("connectivity",)
QUESTION = Panel(
    number=2,
    title="Who talks to whom?",
    lead="How much the output at one step changes with the input at another. Gates that write "
    "little make it small, which harms no gradient of panel 1. Empty: exactly zero.",
    units=(
        ("C(t, t′)", "size of the change of an output at step t′ by the input at step t; log₁₀ C "
         "is -3 where a change of 1 arrives as a thousandth."),
    ),
)  # fmt: skip


def panel(report: Report) -> Panel:
    """The connectivity of each recurrent module as a map of colours."""
    ends = f"Rows of several lengths all end at step {report.steps - 1}."
    return replace(
        QUESTION,
        says=(*map(_sentence, report.connectivity), *[ends] * bool(report.lengths)),
        charts=tuple(map(_map, report.connectivity)),
        tables=tuple(map(_norms, report.connectivity)),
    )


def _sentence(c: Connectivity) -> str:
    last, norms = c.output_steps[-1], c.norms[-1]
    strongest = max(range(len(norms)), key=norms.__getitem__)
    first = f", and step 0 with {show(norms[0])}" if strongest else ""
    return (
        f"{c.name or 'model'}: the output at step {last} hears step {strongest} most, "
        f"{show(norms[strongest])}{first}."
    )


def _map(c: Connectivity) -> Chart:
    chart = Chart(
        f"inputs that outputs of {c.name or 'model'} depend on",
        "input step t", "output step t′", height=max(190, 120 + 22 * len(c.output_steps)),
        of=c.name,
    )  # fmt: skip
    logs = [[math.log10(v) if v > 0 else None for v in row] for row in c.norms]
    chart.heat(range(len(c.norms[0])), logs, "log₁₀ C")
    chart.rows([str(t) for t in c.output_steps])
    return chart


def _norms(c: Connectivity) -> Table:
    head = ("t", *(f"t′ = {t}" for t in c.output_steps))
    caption = f"C(t, t′) of {c.name or 'model'}, outputs by inputs"
    return Table(caption, head, number_rows(c.norms))
