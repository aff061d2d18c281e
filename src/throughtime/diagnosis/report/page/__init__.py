"""The report as one HTML file that needs nothing else; drawn by plotly, of the extra `train`.

A panel is a question, sentences that answer it, charts, and every number in tables. Every other
file of this folder is one, with QUANTITIES and `panel(report) -> Panel`; a new one needs no other
change.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from throughtime.diagnosis.observe import Key
from throughtime.diagnosis.report import describe, make_label, name_model, write_steps
from throughtime.diagnosis.report.chart import Chart, list_swaps, read_library, write_variables

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report, Trouble

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Numbers in rows.

    Attributes:
        caption: what they are, with units.
        head: the name of each column.
        rows: one tuple each, as long as the head.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def html(self) -> str:
        """The table; it scrolls sideways where it is wider than the page."""
        head = "".join(f'<th scope="col">{escape(word)}</th>' for word in self.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(show(v))}</td>" for v in row) + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="wide"><table><caption>{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Panel:
    """One question to a report and its answer.

    Attributes:
        number: its place on the page; a letter for those of a run.
        title: the question.
        lead: how to read the charts.
        units: symbol or unit -> what it means, one line each.
        says: the answer, one sentence each.
        charts: none where the report lacks the quantity; `says` then has the reason.
        tables: all numbers of the panel.
    """

    number: int | str
    title: str
    lead: str
    units: tuple[tuple[str, str], ...] = ()
    says: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()

    def html(self) -> str:
        """The panel as a section of the page; a chart of nothing is a sentence."""
        empty = [f"Nothing to draw of {c.says}." for c in self.charts if c.is_empty]
        says = "".join(f"<li>{escape(sentence)}</li>" for sentence in (*self.says, *empty))
        units = "".join(f"<dt>{escape(n)}</dt> <dd>{escape(w)}</dd>" for n, w in self.units)
        tables = "".join(table.html() for table in self.tables)
        return (
            f'<section class="panel" id="panel-{self.number}">'
            f"<h2><span>{self.number}</span> {escape(self.title)}</h2>"
            f'<p class="lead">{escape(self.lead)}</p>'
            f"{''.join(chart.html() for chart in self.charts if not chart.is_empty)}"
            f"<ul>{says}</ul>"
            + (f'<dl class="units">{units}</dl>' if units else "")
            + (f"<details><summary>Numbers</summary>{tables}</details>" if tables else "")
            + "</section>"
        )


@dataclass(frozen=True)
class PanelPart:
    """One layer and direction of the model, as the page calls and colours it."""

    label: str
    number: int


def list_parts(report: Report) -> dict[Key, PanelPart]:
    """Every layer and direction; each has one colour on all of the page."""
    return {
        key: PanelPart(make_label(key), i) for i, key in enumerate(dict.fromkeys(_keys(report)))
    }


def _keys(report: Report) -> Iterator[Key]:
    for m in report.modules:
        yield from ((m.name, g.layer, g.direction) for g in m.gates)
        yield from ((m.name, j.layer, j.direction) for j in m.jacobians)
    yield from (g.key for g in report.lag_gradients)
    yield from (c.key for c in report.capacities)


def list_absent(report: Report, *quantities: str, what: str = "") -> tuple[str, ...]:
    """Why a report lacks quantities, wholly or for some modules; empty without a reason."""
    return tuple(
        f"{f'{what} not' if what else 'Not'} measured{f' for {m.name}' if m.name else ''}: "
        f"{m.reason.rstrip('.')}."
        for m in report.missing
        if m.quantity in quantities
    )


def number_rows(columns: Sequence[Sequence[Cell]], first: int = 0) -> tuple[tuple[Cell, ...], ...]:
    """Columns as rows, each after its number; a shorter column ends in empty cells."""
    length = max(map(len, columns), default=0)
    return tuple((first + i, *(c[i] if i < len(c) else "" for c in columns)) for i in range(length))


def show(value: Cell) -> str:
    """A number as the page prints it, three digits of it."""
    if value is None:
        return "none"
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.3g}"
    return f"{float(text):.0f}" if "e" in text and 1 <= abs(value) < 1e6 else text


POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""The page's security policy: a browser may load nothing for it."""

CAVEAT = (
    "That says how far gradients reach now, not what will be learnt. A task that needs every input "
    "of the past, and not one or two of them, takes memory too: panel 5."
)


def write_page(report: Report) -> str:
    """A report as HTML that loads nothing; it reads well on a phone, in light and in dark."""
    title = f"How far back {escape(name_model(report))} learns"
    body = _write_verdict(report) + _draw_panels(report)
    return _write_document(title, f"<header><h1>{title}</h1>{_write_header(report)}</header>", body)


def write_run_page(
    title: str, facts: dict[str, str], figures: Table, run_panels: list[Panel],
    report: Report | None, reason: str,
) -> str:  # fmt: skip
    """A run's facts, figures and pictures, and its report under them, in the same look.

    Where there is no report of its memory, `reason` says why.
    """
    head = f"<header><h1>{escape(title)}</h1>{_write_facts(facts)}</header>"
    body = f'<section id="figures" class="panel"><h2>Figures</h2>{figures.html()}</section>'
    body += _write_panels(run_panels)
    if report is None:
        words = f"There is no memory report of this run: {escape(reason)}"
        return _write_document(escape(title), head, f"{body}<p>{words}</p>")
    memory = f"<header><h1>How far back it learned</h1>{_write_header(report)}</header>"
    body += memory + _write_verdict(report) + _draw_panels(report)
    return _write_document(escape(title), head, body)


def _draw_panels(report: Report) -> str:
    """Every panel of the folder, in the order of their numbers."""
    names = [f"{__name__}.{entry.name}" for entry in pkgutil.iter_modules(__path__)]
    drawn = [_draw(importlib.import_module(name), report) for name in names]
    return _write_panels(sorted(drawn, key=lambda panel: int(panel.number)))


def _draw(file: Any, report: Report) -> Panel:
    """The panel of a file, with the reasons for what the report lacks."""
    panel: Panel = file.panel(report)
    why = list_absent(report, *file.QUANTITIES)
    if panel.charts:
        return replace(panel, says=(*panel.says, *why))
    return replace(panel, says=why or panel.says or ("This report does not hold it.",))


def _write_panels(drawn: list[Panel]) -> str:
    return f'<div class="panels">{"".join(panel.html() for panel in drawn)}</div>'


def _write_document(title: str, head: str, body: str) -> str:
    """A whole page; title, head and body are HTML."""
    data = files(__package__) / "data"
    style, script = ((data / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{write_variables()}{style}</style></head><body>"
        f'{head}<main><p id="fault" role="alert" hidden></p>'
        "<noscript><p>The charts need scripts; the tables hold the same numbers.</p></noscript>"
        f"{body}</main>"
        f"<script>{read_library()}</script>"
        f'<script type="application/json" id="swaps">{json.dumps(list_swaps())}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _write_header(report: Report) -> str:
    layers = [f"{m.name or 'model'}: {describe(m)}" for m in report.modules]
    facts = {
        "Model": report.model,
        "Layers": "; ".join(layers),
        "Parameters": "" if report.parameters is None else f"{report.parameters:,}",
        "Steps T": write_steps(report).removesuffix(" steps"),
        "Rows B": str(report.rows),
        "Task lag": f"{report.lag} steps",
        "Loss": "not finite" if report.loss is None else show(report.loss),
        "Measured": report.made,
        "throughtime": report.version,
    }
    return _write_facts(facts)


def _write_facts(facts: dict[str, str]) -> str:
    pairs = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f"<dl>{pairs}</dl>"


def _write_verdict(report: Report) -> str:
    advice = f'<span class="advice">{_write_caveat(report)}</span>'
    words, kind = f"<p>No trouble found.</p>{advice}", "calm"
    if problems := (*report.troubles, *report.cautions):
        words, kind = f"<ol>{''.join(map(_write_trouble, problems))}</ol>", "alarm"
    if report.cautions and not report.troubles:
        kind = "warn"
    return f'<section id="verdict" class="{kind}"><h2>Verdict</h2>{words}</section>'


def _write_caveat(report: Report) -> str:
    """The limits of a report without trouble, with the memory at the lag."""
    r2 = [c.r2_by_lag[report.lag] for c in report.capacities if report.lag < len(c.r2_by_lag)]
    at = f" There r² is {show(max(r2))} at the lag, where 1 is every input." if r2 else ""
    return f"{CAVEAT}{at}"


def _write_trouble(trouble: Trouble) -> str:
    return (
        f"<li><strong>{_write_sentence(trouble.sentence)}</strong>"
        f'<span class="advice">{_write_sentence(trouble.advice)}</span></li>'
    )


def _write_sentence(sentence: str) -> str:
    """Escaped, its powers of ten written as such."""
    powers = re.sub(r"\b10\^([+-]?[\d.]*\d)", r"10<sup>\1</sup>", escape(sentence))
    return powers.replace("r^2", "r²")
