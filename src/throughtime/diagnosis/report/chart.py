"""A chart of the page, drawn by plotly, with its axes and colours: the one file that knows it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from throughtime.errors import import_extra

go = import_extra("plotly.graph_objects", "train")

DASHES = {"solid": "", "dash": "7 4", "dot": "2 3"}
WIDTH, LINE, LONGEST, TOP = 2, 17, 22, 24
"""Of a curve, a line of a label and the room above a chart, pixels; of a label's line, letters."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def read_library() -> str:
    """plotly.js, as one script."""
    script: str = import_extra("plotly.offline", "train").get_plotlyjs()
    return script


class Chart:
    """One chart. Names of series and categories are the user's and are escaped here.

    Args:
        says: what it shows, for those who do not see it.
        x: the horizontal axis with its unit.
        y: the vertical axis with its unit.
        height: pixels.
        log_x: the horizontal axis counts in powers of ten.
        of: whose chart it is, above it.
    """

    def __init__(
        self, says: str, x: str, y: str, *, height: int = 300, log_x: bool = False, of: str = ""
    ) -> None:
        self.says, self.log_x, self.of = says, log_x, of
        self.legend: dict[str, str] = {}
        line = {"gridcolor": light("grid"), "zeroline": False, "linecolor": light("edge"),
                "automargin": True, "ticks": "outside", "tickcolor": light("edge"),
                "ticklabeloverflow": "allow"}  # fmt: skip
        self.figure = go.Figure(layout={
            "template": "none", "height": height, "margin": {"l": 56, "r": 22, "t": TOP, "b": 48},
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12, "color": light("ink")},
            "hoverlabel": {"font": {"family": FONT}, "align": "left"}, "showlegend": False,
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
        dash = dash or _dash(number)
        style = {"color": _colour(number), "width": WIDTH, "dash": dash}
        mode = "lines+markers" if points or len(x) == 1 else "lines"
        self.figure.add_scatter(x=list(x), y=_drawn(y), name=escape(name), mode=mode, line=style,
                                marker={"size": 5}, cliponaxis=False)  # fmt: skip
        sign = f'<path d="M0 6H26" stroke-width="2" stroke-dasharray="{DASHES[dash]}"/>'
        self._name(name, number, sign, shown)

    def points(
        self, name: str, x: Sequence[float], y: Sequence[float], number: int | None,
        *, symbol: str = "circle", shown: bool = True,
    ) -> None:  # fmt: skip
        """Single points."""
        marker = {"color": _colour(number), "size": 8, "symbol": symbol}
        self.figure.add_scatter(x=_drawn(x), y=list(y), name=escape(name), mode="markers",
                                marker=marker, cliponaxis=False)  # fmt: skip
        self._name(name, number, '<circle cx="13" cy="6" r="4" fill="currentColor"/>', shown)

    def band(
        self, name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float],
        *, shown: bool = True,
    ) -> None:  # fmt: skip
        """The ground between two curves, where both are finite."""
        finite = [(k, a, b) for k, a, b in zip(x, low, high, strict=True)
                if math.isfinite(a) and math.isfinite(b)]  # fmt: skip
        around = [(k, b) for k, _, b in finite] + [(k, a) for k, a, _ in reversed(finite)]
        self.figure.add_scatter(x=[k for k, _ in around], y=[v for _, v in around],
                                name=escape(name), fill="toself", fillcolor=light("band"),
                                line={"width": 0}, mode="lines", hoverinfo="none")  # fmt: skip
        self._name(name, "band", '<path d="M0 1H26V11H0Z" fill="currentColor"/>', shown)

    def bars(
        self, name: str, x: Sequence[float], y: Sequence[float], number: int | None,
        *, sideways: bool = False, width: float | None = None, words: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Bars, one above the other where they share a place; sideways, y are their rows.

        A width is in units of the axis; words say what each bar counts.
        """
        self.figure.add_bar(x=list(x), y=list(y), name=escape(name), width=width,
                            marker={"color": _colour(number)}, customdata=list(words) or None,
                            orientation="h" if sideways else "v",
                            hovertemplate="%{customdata}: %{y}" if words else "%{y}")  # fmt: skip
        self.figure.update_layout(barmode="stack", bargap=0.3 if sideways else 0.06)
        self._name(name, number, '<path d="M7 0H19V12H7Z" fill="currentColor"/>', True)

    def spread(
        self, name: str, row: int, low: float, middle: float, high: float, number: int
    ) -> None:
        """A point with its range, sideways."""
        reach = {"type": "data", "symmetric": False, "array": [high - middle],
                 "arrayminus": [middle - low], "color": _colour(number)}  # fmt: skip
        self.figure.add_scatter(x=[middle], y=[row], name=escape(name), mode="markers",
                                marker={"color": _colour(number), "size": 9}, error_x=reach,
                                cliponaxis=False)  # fmt: skip

    def heat(self, x: Sequence[float], z: Sequence[Sequence[float | None]], unit: str) -> None:
        """A map of colours, one row of z for each row of the chart."""
        bar = {"title": {"text": unit, "side": "right"}, "thickness": 12, "outlinewidth": 0}
        self.figure.add_heatmap(x=list(x), y=list(range(len(z))), z=[_drawn(v) for v in z],
                                colorscale="Cividis", colorbar=bar)  # fmt: skip

    def rows(self, names: Sequence[str]) -> None:
        """Names on the vertical axis, from the top: row i is at y = i. Call it last."""
        labels = [*map(_wrapped, names)]
        lines = max((label.count("<br>") for label in labels), default=0)
        self.figure.update_layout(height=self.figure.layout.height + LINE * lines * len(names))
        ticks = {"tickvals": list(range(len(names))), "ticktext": labels}
        self.figure.update_yaxes(range=[len(names) - 0.5, -0.5], showgrid=False, **ticks)
        for trace in self.figure.data:
            trace.customdata = [escape(names[i]) for i in trace.y]
            if trace.type == "heatmap":
                trace.customdata = [[n] * len(trace.x) for n in trace.customdata]
            number = "%{x}: %{z:.3f}" if trace.type == "heatmap" else "%{x:.3g}"
            trace.hovertemplate = f"%{{customdata}}<br>{number}"

    def columns(self, names: Sequence[str]) -> None:
        """Names along the horizontal axis, at 0, 1, 2, ...; slanted where they would meet."""
        if names:
            slant = -45 if max(map(len, names)) > 1 and len(names) > FEW else 0
            ticks = {"tickvals": list(range(len(names))), "ticktext": [*map(escape, names)]}
            self.axes(x={**ticks, "tickangle": slant})

    def mark_x(self, at: float, words: str) -> None:
        """A line from bottom to top, its words above it; call it after what it is to mark, and
        after a range of the axis."""
        self.figure.add_vline(x=at, line=_mark())
        if words:
            scale = math.log10 if self.log_x else float
            drawn = [scale(v) for t in self.figure.data for v in t.x if v is not None]
            ends = self.figure.layout.xaxis.range or drawn or [scale(at)]
            place, middle = scale(at), (min(ends) + max(ends)) / 2
            self.figure.add_annotation(
                x=place, y=1, yref="paper", text=escape(words), yanchor="bottom",
                xanchor="right" if place > middle else "left", **_small(),
            )  # fmt: skip

    def mark_y(self, at: float, words: str) -> None:
        """A line from left to right, its words above it, clear of a mark at the right end."""
        self.figure.add_hline(y=at, line=_mark())
        self.figure.add_annotation(x=0.8, xref="paper", y=at, text=escape(words), xanchor="right",
                                   yanchor="bottom", **_small())  # fmt: skip

    def axes(self, *, x: dict[str, Any] | None = None, y: dict[str, Any] | None = None) -> None:
        """Ranges, kinds and ticks of the axes, as plotly names them."""
        self.figure.update_xaxes(x or {})
        self.figure.update_yaxes(y or {})

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be seen: no number, or bars of no length."""
        return not any(self._seen())

    def _seen(self) -> Iterator[bool]:
        for t in self.figure.data:
            if t.type == "heatmap":
                yield any(v is not None for row in t.z for v in row)
            elif t.type == "bar":
                yield any(t.x if t.orientation == "h" else t.y)
            else:
                yield any(a is not None and b is not None for a, b in zip(t.x, t.y, strict=True))

    def html(self) -> str:
        """The chart's place on the page, with its legend above and its data inside."""
        self._end_with_the_data()
        data: str = self.figure.to_json()
        names = "".join(self.legend.values()) if len(self.legend) > 1 else ""
        return (
            (f'<p class="of">{escape(self.of)}</p>' if self.of else "")
            + (f'<ul class="legend">{names}</ul>' if names else "")
            + f'<div class="chart" role="img" aria-label="{escape(self.says)}">'
            f'<script type="application/json">{data}</script></div>'
        )

    def _end_with_the_data(self) -> None:
        """The horizontal axis from the first to the last number, marks among them."""
        marks = [s.x0 for s in self.figure.layout.shapes if s.x0 == s.x1]
        kinds = {t.type for t in self.figure.data}
        drawn = [x for t in self.figure.data for x, y in zip(t.x, t.y, strict=True)
                 if x is not None and y is not None] if "heatmap" not in kinds else []  # fmt: skip
        drawn += marks if drawn else []
        if self.log_x:
            drawn = [v for v in drawn if v > 0] or [1.0]
            self.axes(x={"tickmode": "array", **list_powers(min(drawn), max(drawn))})
        if self.figure.layout.xaxis.range is not None or not drawn or "bar" in kinds:
            return
        low, high = (math.log10(v) if self.log_x else v for v in (min(drawn), max(drawn)))
        curves = any("lines" in t.mode for t in self.figure.data)
        room = 0.0 if curves and high > low else 0.03 * (high - low) or 0.5
        self.axes(x={"range": [low - room, high + room]})

    def _name(self, name: str, number: int | str | None, sign: str, shown: bool) -> None:
        """One entry of the legend, the name whole."""
        if shown and name not in self.legend:
            pair = PAGE["grey"] if number is None else PAGE.get(str(number))
            one, other = pair or SERIES[int(str(number)) % len(SERIES)]
            self.legend[name] = (
                f'<li style="--light:{one};--dark:{other}"><svg width="26" height="12" '
                f'stroke="currentColor" fill="none" stroke-width="0" aria-hidden="true">{sign}'
                f"</svg>{escape(name)}</li>"
            )


def _wrapped(name: str) -> str:
    """A name escaped, in lines that break after its dots and the like."""
    lines = [""]
    for part in re.findall(r"[^._\s/-]*[._\s/-]?", name):
        for piece in (part[i : i + LONGEST] for i in range(0, len(part), LONGEST)):
            if lines[-1] and len(lines[-1] + piece.rstrip()) > LONGEST:
                lines.append("")
            lines[-1] += piece
    return "<br>".join(escape(line.strip()) for line in lines)


def _colour(number: int | None) -> str:
    return light("grey") if number is None else SERIES[number % len(SERIES)][0]


def _dash(number: int | None) -> str:
    return "dash" if number is None else [*DASHES][number // len(SERIES) % len(DASHES)]


def _drawn(values: Sequence[float | None]) -> list[float | None]:
    return [v if v is not None and math.isfinite(v) else None for v in values]


def _mark() -> dict[str, Any]:
    return {"color": light("mark"), "width": 1, "dash": "dot"}


def _small() -> dict[str, Any]:
    return {"font": {"size": 11, "color": light("mark")}, "showarrow": False}


FEW, MOST = 3, 7
"""Ticks that an axis has at least, and powers of ten that it has at most."""


def list_powers(low: float, high: float, *, logs: bool = False) -> dict[str, list[Any]]:
    """Each power of ten around two numbers above 0; its multiples too where there are few.

    They are `tickvals` and `ticktext` of plotly's axes, with `logs` of the numbers' logarithms.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, -(-(last - first) // MOST))
    for multiples in (range(1, 2), (1, 2, 5), range(1, 10)):
        places = [(m, d) for d in range(first, last + 1, step) for m in multiples]
        if sum(low <= m * 10.0**d <= high for m, d in places) >= FEW:
            break
    at = [m * 10.0**d for m, d in places]
    return {
        "tickvals": [math.log10(v) for v in at] if logs else at,
        "ticktext": [_words(m, d) for m, d in places],
    }


def _words(times: int, power: int) -> str:
    """A number as one writes it; far from 1 as a power."""
    if -4 < power < 5:
        return f"{times * 10.0**power:g}"
    return f"{'' if times == 1 else f'{times}·'}10<sup>{power}</sup>"


PAGE = {
    "paper": ("#fbfbfa", "#15181c"),
    "card": ("#ffffff", "#1d2126"),
    "ink": ("#1f2328", "#e4e7ea"),
    "soft": ("#59636e", "#a3acb6"),
    "edge": ("#d8dce0", "#343a41"),
    "grid": ("#e9ecef", "#2b3037"),
    "band": ("#dfe3e7", "#3a4149"),
    "grey": ("#8b949e", "#7d8791"),
    "mark": ("#59636f", "#a3acb7"),
    "alarm": ("#b3261e", "#ff9d8f"),
    "warn": ("#8a5a00", "#f0c36b"),
    "calm": ("#00694f", "#4fd1a5"),
}
"""Name -> the colour on light ground, the colour on dark ground; no light one stands twice."""

SERIES = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f0a04b"),
    ("#138870", "#c2e9e6"),
    ("#50184d", "#c5458e"),
    ("#523514", "#e8d6a8"),
    ("#2930ba", "#6377f6"),
)
"""Of the curves; the first two after Okabe and Ito, Color Universal Design (2008), the others
chosen to stay far from them and each other to eyes that lack one kind of cone."""


def light(name: str) -> str:
    """A colour by its name as it is on light ground; charts are drawn in these."""
    return PAGE[name][0]


def write_variables() -> str:
    """The colours as CSS variables, for either ground."""
    by_ground = [";".join(f"--{n}:{pair[i]}" for n, pair in PAGE.items()) for i in (0, 1)]
    return (
        f":root{{color-scheme:light dark;{by_ground[0]}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{by_ground[1]}}}}}"
    )


def list_swaps() -> dict[str, str]:
    """The colour on light ground -> the one on dark ground, for the charts."""
    return dict((*PAGE.values(), *SERIES))
