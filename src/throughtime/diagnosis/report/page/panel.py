"""What a panel is: a question, sentences that answer it, charts, and every number in tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from throughtime.diagnosis.report import Report, make_label
from throughtime.diagnosis.report.page.chart import Chart

Cell = str | int | float | None
Key = tuple[str, int, int]


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
        key: PanelPart(make_label(*key), i) for i, key in enumerate(dict.fromkeys(_keys(report)))
    }


def _keys(report: Report) -> Iterator[Key]:
    for m in report.modules:
        yield from ((m.name, g.layer, g.direction) for g in m.gates)
        yield from ((m.name, j.layer, j.direction) for j in m.jacobians)
    yield from ((g.name, g.layer, g.direction) for g in report.lag_gradients)
    yield from ((c.name, c.layer, c.direction) for c in report.capacities)


def list_absent(report: Report, *quantities: str, what: str = "") -> tuple[str, ...]:
    """Why a report lacks quantities, wholly or for some modules; empty without a reason."""
    return tuple(
        f"{f'{what} not' if what else 'Not'} measured{f' for {m.name}' if m.name else ''}: "
        f"{m.reason.rstrip('.')}."
        for m in report.missing
        if m.quantity in quantities
    )


NOTHING = ("This report does not hold it.",)


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
