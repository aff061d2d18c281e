"""Panel 8: whether it learns evenly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnosis.report import Report, make_label
from throughtime.diagnosis.report.chart import Chart
from throughtime.diagnosis.report.page import Panel, Table, show

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.evenness import Evenness, Share


QUANTITIES = ("evenness",)
QUESTION = Panel(
    number=8,
    title="Is it learning evenly?",
    lead="Above, the gradient or update of each matrix over its weights, by gate; updates of "
    "about 1/1000 are usual. Below, the gradient that reaches each layer at three steps.",
    units=(
        ("‖g‖ / ‖θ‖", "length of a block's gradient over that of its weights; gradients are as "
         "large as the loss is, so compare blocks with each other."),
        ("‖Δθ‖ / ‖θ‖", "length of the change since `before` over that of the weights."),
        ("‖dL/ds‖", "length of the gradient of the loss by the states at a step, of all rows."),
    ),
)  # fmt: skip
GUIDE, ZEROS = 1e-3, "biases that start at 0 do learn"


def panel(report: Report) -> Panel:
    """Ratios by matrix and gate, gradients by depth."""
    e = report.evenness
    if e is None:
        return QUESTION
    return replace(
        QUESTION,
        units=tuple(u for u in QUESTION.units if u[0] == _symbol(e) or "dL" in u[0]),
        says=tuple(_answer(e)),
        charts=(_ratios(e), _depth(e)),
        tables=(_shares(e), _norms(e), *([_neighbours(e)] if e.neighbours else [])),
    )


def _symbol(e: Evenness) -> str:
    return "‖Δθ‖ / ‖θ‖" if e.kind == "update" else "‖g‖ / ‖θ‖"


def _answer(e: Evenness) -> Iterator[str]:
    known = sorted((s.ratio, _name(s)) for s in e.shares if s.ratio)
    if known:
        (least, where), (most, place) = known[0], known[-1]
        yield f"From {show(least)} ({where}) to {show(most)} ({place}), as {_symbol(e)}."
    else:
        yield "Every ratio is zero, or of weights that are zero."
    yield from _explain_gaps(e)
    for n in e.neighbours:
        if n.cosine is not None:
            below, above = (make_label((n.name, n.layer + i, n.direction)) for i in (0, 1))
            yield f"Gradients of {below} and {above}: cosine {show(n.cosine)}."


def _name(share: Share) -> str:
    return f"{share.parameter} {share.gate}".strip()


def _explain_gaps(e: Evenness) -> Iterator[str]:
    """Which rows have no point, and why."""
    for what, shares in (
        (f"Not drawn, since weights that are all 0 give no ratio ({ZEROS})",
         [s for s in e.shares if s.ratio is None]),
        ("Not drawn, since nothing moves them", [s for s in e.shares if s.ratio == 0]),
    ):  # fmt: skip
        if shares:
            yield f"{what}: {', '.join(dict.fromkeys(map(_name, shares)))}."


def _ratios(e: Evenness) -> Chart:
    drawn = dict.fromkeys(s.parameter for s in e.shares if s.ratio)
    rows = {name: i for i, name in enumerate(drawn)}
    chart = Chart(
        "gradient or update over the weights", f"{_symbol(e)}, log scale", "",
        height=130 + 20 * len(rows), log_x=True,
    )  # fmt: skip
    gates = dict.fromkeys(s.gate for s in e.shares if s.gate)
    for number, gate in [*enumerate(gates), (None, "")]:
        ratios = [(s.ratio, rows[s.parameter]) for s in e.shares if s.gate == gate and s.ratio]
        if ratios:
            chart.points(
                gate or "whole", [r for r, _ in ratios], [row for _, row in ratios], number
            )
    chart.mark_x(GUIDE, "1/1000")
    chart.rows(list(rows))
    return chart


def _depth(e: Evenness) -> Chart:
    chart = Chart(
        "gradient that reaches each layer", "‖dL/ds‖, log scale", "",
        height=130 + 24 * len(e.depth), log_x=True,
    )  # fmt: skip
    for number, t in enumerate(dict.fromkeys(t for d in e.depth for t in d.steps)):
        norms = [(d.norms[d.steps.index(t)], row) for row, d in enumerate(e.depth) if t in d.steps]
        positive = [(norm, row) for norm, row in norms if norm > 0]
        chart.points(f"step {t}", [v for v, _ in positive], [row for _, row in positive], number)
    chart.rows([make_label(d.key) for d in e.depth])
    return chart


def _shares(e: Evenness) -> Table:
    rows = tuple((s.parameter, s.gate, s.ratio) for s in e.shares)
    return Table("Over the weights; none: the weights are 0", ("parameter", "gate", _symbol(e)),
                 rows)  # fmt: skip


def _norms(e: Evenness) -> Table:
    rows = tuple(
        (make_label(d.key), t, norm)
        for d in e.depth
        for t, norm in zip(d.steps, d.norms, strict=True)
    )
    return Table("Gradient at a step, of all rows", ("layer", "step", "‖dL/ds‖"), rows)


def _neighbours(e: Evenness) -> Table:
    rows = tuple((make_label(n.key), n.cosine) for n in e.neighbours)
    return Table("Cosine with the layer above", ("layer", "cosine"), rows)
