"""Panel 6: where the weight gradient comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from throughtime.diagnosis.report.chart import Chart
from throughtime.diagnosis.report.page import Panel, Table, number_rows, show

if TYPE_CHECKING:
    from throughtime.diagnosis.quantities.weight_lags import WeightLags
    from throughtime.diagnosis.report import Report


QUANTITIES = ("weight_lags",)
QUESTION = Panel(
    number=6,
    title="Where does the weight gradient come from?",
    lead="Line: the cosine of what back-propagation truncated at K steps gives with the whole "
    "gradient. Dots: its size over the whole one's. Diamond: from here on the cosine is 0.99.",
    units=(
        ("cosine", "1: the truncated gradient points as the whole does; 0: across; -1: away."),
        ("size", "length of the truncated gradient over that of the whole one."),
    ),
)
RIGHT = 0.99


def panel(report: Report) -> Panel:
    """The direction error of truncated back-propagation, each module and direction."""
    weight_lags = report.weight_lags
    if not weight_lags:
        return QUESTION
    return replace(
        QUESTION,
        says=tuple(_sentence(w, report.truncation) for w in weight_lags),
        charts=(_chart(report),),
        tables=(_summary(weight_lags), _by_lag(weight_lags)),
    )


def _label(w: WeightLags) -> str:
    return f"{w.name or 'model'}{' backward' if w.direction else ''}"


def _sentence(w: WeightLags, truncation: int | None) -> str:
    cut = ""
    if truncation is not None:
        cosine = w.cosine_by_lag[min(truncation, len(w.cosine_by_lag) - 1)]
        cut = f"; at your {truncation} steps the cosine is {show(cosine)}"
    return f"{_label(w)}: points right (cosine {RIGHT}) from K = {w.steps_to(RIGHT)} steps on{cut}."


def _chart(report: Report) -> Chart:
    chart = Chart("cosine and size of the truncated gradient", "K, steps", "cosine; share of size")
    for number, w in enumerate(report.weight_lags):
        lags, right = range(len(w.cosine_by_lag)), w.steps_to(RIGHT)
        chart.line(_label(w), lags, w.cosine_by_lag, number)
        chart.line(f"{_label(w)}, size", lags, w.share_by_lag, number, dash="dot")
        if right < len(lags):
            chart.points(f"{_label(w)}, right", [right], [w.cosine_by_lag[right]], number,
                         symbol="diamond", shown=False)  # fmt: skip
    chart.mark_y(RIGHT, "0.99")
    if report.truncation is not None:
        chart.mark_x(report.truncation, f"your truncation {report.truncation}")
    chart.axes(y={"rangemode": "tozero"})
    return chart


def _summary(weight_lags: tuple[WeightLags, ...]) -> Table:
    rows = tuple((_label(w), w.steps_to(RIGHT), w.unexplained_share) for w in weight_lags)
    head = ("module", "K(0.99), steps", "unexplained share")
    return Table("From where on it points right; what rounding leaves unexplained", head, rows)


def _by_lag(weight_lags: tuple[WeightLags, ...]) -> Table:
    columns = [(f"{_label(w)} {word}", values) for w in weight_lags for word, values in (
        ("‖G‖", w.norm_by_lag), ("share", w.share_by_lag), ("cosine", w.cosine_by_lag)
    )]  # fmt: skip
    head = ("K", *(name for name, _ in columns))
    return Table("By lag", head, number_rows([values for _, values in columns]))
