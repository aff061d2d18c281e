"""Panel 7: what clipping does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnosis.report.chart import Chart
from throughtime.diagnosis.report.page import Panel, Table, number_rows, show

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.clipping import Clipping
    from throughtime.diagnosis.report import Report


QUANTITIES = ("clipping",)
QUESTION = Panel(
    number=7,
    title="What does clipping do?",
    lead="The size of the whole gradient of fresh batches at fixed weights, and the threshold.",
    units=(
        ("‖g‖", "length of the gradient by all parameters together."),
        ("noise scale", "so many batches must be averaged until noise and gradient are equal; "
         "far below 1: batches agree."),
    ),
)  # fmt: skip


def panel(report: Report) -> Panel:
    """Gradient norms by batch, and what the threshold makes of them."""
    c = report.clipping
    if c is None:
        return QUESTION
    return replace(
        QUESTION, says=tuple(_answer(c)), charts=(_chart(c),), tables=(_summary(c), _norms(c))
    )


def _answer(c: Clipping) -> Iterator[str]:
    yield (
        f"Median size {show(c.median_norm)} over {len(c.norms)} batches; "
        f"noise scale {show(c.noise_scale_batches)} batches."
    )
    if c.threshold is None:
        yield "No threshold was given, so nothing is clipped."
    else:
        yield (
            f"Clipped by {c.kind} at {show(c.threshold)}: {c.clip_rate:.0%} of the batches, "
            f"shrunk to {c.mean_shrink:.0%} on average; the mean gradient keeps a cosine of "
            f"{show(c.mean_cosine)} and is off by {c.mean_bias:.0%} of its size."
        )
    noise = " only: the raw gradient is noise; mend the Jacobian first." if c.is_noise else "."
    yield f"Two halves of the batches agree by a cosine of {show(c.split_half_cosine)}{noise}"


def _chart(c: Clipping) -> Chart:
    chart = Chart("size of the gradient by batch", "batch", "‖g‖")
    chart.points("‖g‖", range(len(c.norms)), c.norms, 0)
    if c.threshold is not None and c.kind == "norm":
        chart.mark_y(c.threshold, "threshold")
    chart.axes(x={"dtick": 1 + len(c.norms) // 10}, y={"rangemode": "tozero"})
    return chart


def _summary(c: Clipping) -> Table:
    rows = (
        ("kind", c.kind),
        ("threshold", c.threshold),
        ("clip rate", c.clip_rate),
        ("mean shrink", c.mean_shrink),
        ("cosine of the means", c.mean_cosine),
        ("cosine of a batch", c.batch_cosine),
        ("bias of the mean", c.mean_bias),
        ("split-half cosine", c.split_half_cosine),
        ("noise scale, batches", c.noise_scale_batches),
    )
    return Table("Clipping; none: no threshold was given", ("quantity", "value"), rows)


def _norms(c: Clipping) -> Table:
    return Table("‖g‖ of each batch", ("batch", "‖g‖"), number_rows([c.norms]))
