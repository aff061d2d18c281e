"""A chart of the page, drawn by plotly: the one file that knows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from throughtime.diagnosis.page.colours import SERIES, light
from throughtime.diagnosis.page.ticks import powers
from throughtime.errors import missing_extra

try:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
except ModuleNotFoundError as error:
    raise missing_extra("plotly", "train") from error

DASHES = ("solid", "dash", "dot")
WIDTH, LINE, LONGEST, TOP = 2, 19, 22, 24
"""Of a curve, a line of the legend and the room above a chart, pixels; of a name, letters."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def library() -> str:
    """plotly.js, as one script."""
    script: str = get_plotlyjs()
    return script


class Chart:
    """One chart. Names of series and categories are the user's and are escaped here.

    Args:
        says: what it shows, for those who do not see it.
        x: the horizontal axis with its unit.
        y: the vertical axis with its unit.
        height: pixels.
        log_x: the horizontal axis counts in powers of ten.
    """

    def __init__(
        self, says: str, x: str, y: str, *, height: int = 300, log_x: bool = False
    ) -> None:
        self.says, self.log_x = says, log_x
        line = {"gridcolor": light("grid"), "zeroline": False, "linecolor": light("edge"),
                "automargin": True, "ticks": "outside", "tickcolor": light("edge")}  # fmt: skip
        self.figure = go.Figure(layout={
            "template": "none", "height": height, "margin": {"l": 56, "r": 16, "t": TOP, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12, "color": light("ink")},
            "hoverlabel": {"font": {"family": FONT}, "align": "left"},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom",
                       "traceorder": "normal"},
            "xaxis": {**line, "tickangle": 0, "title": {"text": escape(x), "standoff": 8}},
            "yaxis": {**line, "title": {"text": escape(y), "standoff": 8}},
        })  # fmt: skip
        if log_x:
            self.figure.update_xaxes(type="log")

    def line(
        self, name: str, x: Sequence[float], y: Sequence[float | None], number: int | None,
        *, points: bool = False, dash: str | None = None, shown: bool = True,
    ) -> None:  # fmt: skip
        """A curve; what is not finite leaves a gap. Without a number it is grey: a comparison."""
        style = {"color": _colour(number), "width": WIDTH, "dash": dash or _dash(number)}
        mode = "lines+markers" if points or len(x) == 1 else "lines"
        self.figure.add_scatter(x=list(x), y=_drawn(y), name=_cut(name), mode=mode, line=style,
                                marker={"size": 5}, showlegend=shown)  # fmt: skip

    def points(
        self, name: str, x: Sequence[float], y: Sequence[float], number: int | None,
        *, symbol: str = "circle", shown: bool = True,
    ) -> None:  # fmt: skip
        """Single points."""
        marker = {"color": _colour(number), "size": 8, "symbol": symbol}
        self.figure.add_scatter(x=_drawn(x), y=list(y), name=_cut(name), mode="markers",
                                marker=marker, showlegend=shown)  # fmt: skip

    def band(
        self, name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float],
        *, shown: bool = True,
    ) -> None:  # fmt: skip
        """The ground between two curves, where both are finite."""
        kept = [(k, a, b) for k, a, b in zip(x, low, high, strict=True)
                if math.isfinite(a) and math.isfinite(b)]  # fmt: skip
        around = [(k, b) for k, _, b in kept] + [(k, a) for k, a, _ in reversed(kept)]
        self.figure.add_scatter(x=[k for k, _ in around], y=[v for _, v in around],
                                name=_cut(name), fill="toself", fillcolor=light("band"),
                                line={"width": 0}, mode="lines", hoverinfo="none",
                                showlegend=shown)  # fmt: skip

    def bars(
        self, name: str, x: Sequence[float], y: Sequence[float], number: int | None,
        *, sideways: bool = False, width: float | None = None, words: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Bars, one above the other where they share a place; sideways, y are their rows.

        A width is in units of the axis; words say what each bar counts.
        """
        self.figure.add_bar(x=list(x), y=list(y), name=_cut(name), width=width,
                            marker={"color": _colour(number)}, customdata=list(words) or None,
                            orientation="h" if sideways else "v",
                            hovertemplate="%{customdata}: %{y}" if words else "%{y}")  # fmt: skip
        self.figure.update_layout(barmode="stack", bargap=0.3 if sideways else 0.06)

    def spread(
        self, name: str, row: int, low: float, middle: float, high: float, number: int
    ) -> None:
        """A point with its range, sideways."""
        reach = {"type": "data", "symmetric": False, "array": [high - middle],
                 "arrayminus": [middle - low], "color": _colour(number)}  # fmt: skip
        self.figure.add_scatter(x=[middle], y=[row], name=_cut(name), mode="markers",
                                marker={"color": _colour(number), "size": 9}, error_x=reach,
                                showlegend=False)  # fmt: skip

    def heat(self, x: Sequence[float], z: Sequence[Sequence[float | None]], unit: str) -> None:
        """A map of colours, one row of z for each row of the chart."""
        bar = {"title": {"text": unit, "side": "right"}, "thickness": 12, "outlinewidth": 0}
        self.figure.add_heatmap(x=list(x), y=list(range(len(z))), z=[_drawn(v) for v in z],
                                colorscale="Cividis", colorbar=bar)  # fmt: skip

    def rows(self, names: Sequence[str]) -> None:
        """Names on the vertical axis, from the top: row i is at y = i. Call it last."""
        ticks = {"tickvals": list(range(len(names))), "ticktext": list(map(_cut, names))}
        self.figure.update_yaxes(range=[len(names) - 0.5, -0.5], showgrid=False, **ticks)
        for trace in self.figure.data:
            trace.customdata = [escape(names[i]) for i in trace.y]
            if trace.type == "heatmap":
                trace.customdata = [[n] * len(trace.x) for n in trace.customdata]
            number = "%{x}: %{z:.3f}" if trace.type == "heatmap" else "%{x:.4g}"
            trace.hovertemplate = f"%{{customdata}}<br>{number}"

    def mark_x(self, at: float, words: str) -> None:
        """A line from bottom to top, its words above it; call it after what it is to mark."""
        self.figure.add_vline(x=at, line=_mark())
        if words:
            scale = math.log10 if self.log_x else float
            drawn = [v for t in self.figure.data for v in t.x if v is not None] or [at]
            place, middle = scale(at), (scale(min(drawn)) + scale(max(drawn))) / 2
            self.figure.add_annotation(
                x=place, y=1, yref="paper", text=escape(words), yanchor="bottom",
                xanchor="right" if place > middle else "left", **_small(),
            )  # fmt: skip
            plot = self.figure.layout.height - self.figure.layout.margin.b - TOP
            self.figure.update_layout(legend={"y": 1 + LINE / plot})

    def mark_y(self, at: float, words: str) -> None:
        """A line from left to right, its words above it, clear of a mark at the right end."""
        self.figure.add_hline(y=at, line=_mark())
        self.figure.add_annotation(x=0.8, xref="paper", y=at, text=escape(words), xanchor="right",
                                   yanchor="bottom", **_small())  # fmt: skip

    def axes(self, *, x: dict[str, Any] | None = None, y: dict[str, Any] | None = None) -> None:
        """Ranges, kinds and ticks of the axes, as plotly names them."""
        self.figure.update_xaxes(x or {})
        self.figure.update_yaxes(y or {})

    def html(self) -> str:
        """The chart's place on the page, with its data beside it; a long legend adds height."""
        named = sum(t.type != "heatmap" and t.showlegend is not False for t in self.figure.data)
        more = LINE * max(0, (named - 1) // 2)
        if self.log_x:
            drawn = [v for t in self.figure.data for v in t.x if v] or [1.0]
            self.axes(x={"tickmode": "array", **powers(min(drawn), max(drawn))})
        self.figure.update_layout(showlegend=named > 1, height=self.figure.layout.height + more)
        data: str = self.figure.to_json()
        return (
            f'<div class="chart" role="img" aria-label="{escape(self.says)}">'
            f'<script type="application/json">{data}</script></div>'
        )


def _cut(name: str) -> str:
    """A name escaped, and its beginning left out where it is long."""
    return escape(name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}")


def _colour(number: int | None) -> str:
    return light("grey") if number is None else SERIES[number % len(SERIES)][0]


def _dash(number: int | None) -> str:
    return "dash" if number is None else DASHES[number // len(SERIES) % len(DASHES)]


def _drawn(values: Sequence[float | None]) -> list[float | None]:
    return [v if v is not None and math.isfinite(v) else None for v in values]


def _mark() -> dict[str, Any]:
    return {"color": light("mark"), "width": 1, "dash": "dot"}


def _small() -> dict[str, Any]:
    return {"font": {"size": 11, "color": light("mark")}, "showarrow": False}
