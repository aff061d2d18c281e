"""A chart of the page, drawn by plotly: the one file that knows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from throughtime.diagnose.page.colours import SERIES, light
from throughtime.errors import missing_extra

try:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
except ModuleNotFoundError as error:
    raise missing_extra("plotly", "train") from error

DASHES = ("solid", "dash", "dot")
WIDTH, FONT = 2, "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


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
    """

    def __init__(self, says: str, x: str, y: str, *, height: int = 300) -> None:
        self.says = says
        line = {"gridcolor": light("grid"), "zeroline": False, "linecolor": light("edge"),
                "automargin": True, "ticks": "outside", "tickcolor": light("edge")}  # fmt: skip
        self.figure = go.Figure(layout={
            "template": "none", "height": height, "margin": {"l": 56, "r": 16, "t": 14, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12, "color": light("ink")},
            "hoverlabel": {"font": {"family": FONT}, "align": "left"},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom",
                       "traceorder": "normal"},
            "xaxis": {**line, "title": {"text": x, "standoff": 8}},
            "yaxis": {**line, "title": {"text": y, "standoff": 8}},
            "showlegend": True,
        })  # fmt: skip

    def line(
        self, name: str, x: Sequence[float], y: Sequence[float | None], number: int | None,
        *, points: bool = False,
    ) -> None:  # fmt: skip
        """A curve; what is not finite leaves a gap. Without a number it is grey: a comparison."""
        style = {"color": _colour(number), "width": WIDTH, "dash": _dash(number)}
        mode = "lines+markers" if points or len(x) == 1 else "lines"
        self.figure.add_scatter(x=list(x), y=_drawn(y), name=escape(name), mode=mode,
                                line=style, marker={"size": 5})  # fmt: skip

    def points(
        self, name: str, x: Sequence[float], y: Sequence[Any], number: int | None,
        symbol: str = "circle",
    ) -> None:  # fmt: skip
        """Single points."""
        marker = {"color": _colour(number), "size": 8, "symbol": symbol}
        self.figure.add_scatter(x=_drawn(x), y=[escape(v) if isinstance(v, str) else v for v in y],
                                name=escape(name), mode="markers", marker=marker)  # fmt: skip

    def band(self, name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float]
             ) -> None:  # fmt: skip
        """The ground between two curves, where both are finite."""
        kept = [(k, a, b) for k, a, b in zip(x, low, high, strict=True)
                if math.isfinite(a) and math.isfinite(b)]  # fmt: skip
        around = [(k, b) for k, _, b in kept] + [(k, a) for k, a, _ in reversed(kept)]
        self.figure.add_scatter(x=[k for k, _ in around], y=[v for _, v in around],
                                name=escape(name), fill="toself", fillcolor=light("band"),
                                line={"width": 0}, mode="lines", hoverinfo="none")  # fmt: skip

    def bars(
        self, name: str, x: Sequence[Any], y: Sequence[Any], number: int | None,
        *, sideways: bool = False,
    ) -> None:  # fmt: skip
        """Bars, one above the other where they share a place; sideways, y are the categories."""
        self.figure.add_bar(x=list(x), y=[escape(v) if isinstance(v, str) else v for v in y],
                            name=escape(name), marker={"color": _colour(number)},
                            orientation="h" if sideways else "v")  # fmt: skip
        self.figure.update_layout(barmode="stack", bargap=0.06 if not sideways else 0.3)

    def spread(
        self, name: str, y: str, low: float, middle: float, high: float, number: int
    ) -> None:
        """A point with its range, sideways."""
        reach = {"type": "data", "symmetric": False, "array": [high - middle],
                 "arrayminus": [middle - low], "color": _colour(number)}  # fmt: skip
        self.figure.add_scatter(x=[middle], y=[escape(y)], name=escape(name), mode="markers",
                                marker={"color": _colour(number), "size": 9},
                                error_x=reach)  # fmt: skip

    def heat(
        self, x: Sequence[float], y: Sequence[str], z: Sequence[Sequence[float]], unit: str
    ) -> None:
        """A map of colours, one row of z for each y."""
        bar = {"title": {"text": unit, "side": "right"}, "thickness": 12, "outlinewidth": 0}
        self.figure.add_heatmap(x=list(x), y=[escape(v) for v in y], z=[_drawn(row) for row in z],
                                colorscale="Cividis", colorbar=bar)  # fmt: skip
        self.figure.update_layout(showlegend=False)
        self.figure.update_yaxes(type="category")

    def mark_x(self, at: float, words: str) -> None:
        """A line from bottom to top, in the axis's own numbers (log10 on a log axis)."""
        self.figure.add_vline(x=at, line=_mark(), annotation={
            "text": words, "font": {"size": 11, "color": light("mark")}, "textangle": -90,
            "xanchor": "right", "yanchor": "top", "y": 1})  # fmt: skip

    def mark_y(self, at: float, words: str) -> None:
        """A line from left to right, in the axis's own numbers."""
        self.figure.add_hline(y=at, line=_mark(), annotation={
            "text": words, "font": {"size": 11, "color": light("mark")}, "xanchor": "right",
            "yanchor": "bottom", "x": 1})  # fmt: skip

    def axes(self, *, x: dict[str, Any] | None = None, y: dict[str, Any] | None = None) -> None:
        """Ranges, kinds and ticks of the axes, as plotly names them."""
        self.figure.update_xaxes(x or {})
        self.figure.update_yaxes(y or {})

    def html(self) -> str:
        """The chart's place on the page, with its data beside it."""
        data: str = self.figure.to_json()
        return (
            f'<div class="chart" role="img" aria-label="{escape(self.says)}">'
            f'<script type="application/json">{data}</script></div>'
        )


def _colour(number: int | None) -> str:
    return light("grey") if number is None else SERIES[number % len(SERIES)][0]


def _dash(number: int | None) -> str:
    return "dash" if number is None else DASHES[number // len(SERIES) % len(DASHES)]


def _drawn(values: Sequence[float | None]) -> list[float | None]:
    return [v if v is not None and math.isfinite(v) else None for v in values]


def _mark() -> dict[str, Any]:
    return {"color": light("mark"), "width": 1, "dash": "dot"}
