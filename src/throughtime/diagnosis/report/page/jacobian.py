"""Panel 3: why gradients vanish or explode."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnosis.report.chart import Chart
from throughtime.diagnosis.report.page import Panel, PanelPart, Table, list_parts, number_rows, show

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.jacobians import Jacobians
    from throughtime.diagnosis.report import Report


QUANTITIES = ("jacobians", "modules")
QUESTION = Panel(
    number=3,
    title="Why? The Jacobians of one step",
    lead="Above, the Lyapunov exponents: how fast each direction of the state grows or fades. "
    "Below, how much one step stretches: the median singular value and 5 to 95 % of them.",
    units=(
        ("nats a step", "an exponent of -0.1 loses 10 % a step, 0 keeps all, 0.7 doubles."),
        ("J", "the change of all states after a step by those before it; a singular value of 1 "
         "keeps a direction's length."),
        ("condition number", "the longest over the shortest direction after those steps; from "
         "1e15 on a lower bound, for numbers end there."),
    ),
)  # fmt: skip


def panel(report: Report) -> Panel:
    """Lyapunov exponents and singular values of the steps' Jacobians."""
    known = list_parts(report)
    results = [
        (known[m.name, j.layer, j.direction], j) for m in report.modules for j in m.jacobians
    ]
    if not results:
        return replace(QUESTION, says=("Not measured: it needs more than 10 steps.",))
    return replace(
        QUESTION,
        says=tuple(_sentence(part, j) for part, j in results),
        charts=(_spectrum(results), _stretch(results)),
        tables=(_summary(results), _matrices(results), _exponents(results)),
    )


def _sentence(part: PanelPart, j: Jacobians) -> str:
    largest, lost = j.lyapunov_nats_per_step[0], j.lyapunov_nats_per_step.count(-math.inf)
    least = "at least " if 1e15 <= j.condition_number < math.inf else ""
    gone = f"; lost for good: {lost} of {len(j.lyapunov_nats_per_step)}" if lost else ""
    return (
        f"{part.label}: largest exponent {show(largest)} nats a step{gone}; over "
        f"{j.condition_steps} steps the condition number is {least}{show(j.condition_number)}."
    )


def _spectrum(results: list[tuple[PanelPart, Jacobians]]) -> Chart:
    chart = Chart("Lyapunov exponents, largest first", "number", "exponent, nats a step")
    for part, j in results:
        values = j.lyapunov_nats_per_step
        chart.line(part.label, range(1, len(values) + 1), values, part.number, points=True)
    chart.mark_y(0.0, "neither grows nor fades")
    return chart


def _stretch(results: list[tuple[PanelPart, Jacobians]]) -> Chart:
    chart = Chart(
        "singular values of one step, 5, 50 and 95 %", "singular value of J", "",
        height=110 + 26 * len(results),
    )  # fmt: skip
    for row, (part, j) in enumerate(results):
        chart.spread(part.label, row, *j.singular_values, part.number)
    chart.mark_x(1.0, "")
    chart.rows([part.label for part, _ in results])
    chart.axes(x={"range": [0, max(1.0, *(j.singular_values[2] for _, j in results))]})
    return chart


def _summary(results: list[tuple[PanelPart, Jacobians]]) -> Table:
    head = ("layer", "singular 5 %", "50 %", "95 %", "condition number", "of steps")
    rows = (
        (p.label, *j.singular_values, j.condition_number, j.condition_steps) for p, j in results
    )
    return Table("Singular values of one step; condition number of a product", head, tuple(rows))


def _matrices(results: list[tuple[PanelPart, Jacobians]]) -> Table:
    head = ("layer", "gate", "spectral radius", "σ max", "orthogonality defect")
    rows = (
        (p.label, m.gate, m.spectral_radius, m.largest_singular_value, m.orthogonality_defect)
        for p, j in results
        for m in j.matrices
    )
    return Table("Recurrent matrices U; the defect is ‖UᵀU − I‖ / √H", head, tuple(rows))


def _exponents(results: list[tuple[PanelPart, Jacobians]]) -> Table:
    rows = number_rows([j.lyapunov_nats_per_step for _, j in results], first=1)
    return Table(
        "Lyapunov exponents, nats a step", ("number", *(p.label for p, _ in results)), rows
    )
