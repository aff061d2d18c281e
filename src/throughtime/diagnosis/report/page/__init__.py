"""The report as one HTML file that needs nothing else; drawn by plotly, of the extra `train`.

Every file in `panels` is a panel; a new one is found by itself.
"""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from throughtime.diagnosis.report import describe, name_model, write_steps
from throughtime.diagnosis.report.page import chart, panels
from throughtime.diagnosis.report.page.chart import library
from throughtime.diagnosis.report.page.panel import Panel, Table, show

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report
    from throughtime.diagnosis.verdict import Trouble


POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""The page's security policy: a browser may load nothing for it."""

CAVEAT = (
    "That says how far gradients reach now, not what will be learnt. A task that needs every input "
    "of the past, and not one or two of them, takes memory too: panel 5."
)


def page(report: Report) -> str:
    """A report as HTML that loads nothing; it reads well on a phone, in light and in dark.

    Raises:
        MissingExtra: plotly is not installed.
    """
    title = f"How far back {escape(name_model(report))} learns"
    body = _verdict(report) + _panels(panels.draw_panels(report))
    return _document(title, f"<header><h1>{title}</h1>{_header(report)}</header>", body)


def run_page(
    title: str, facts: dict[str, str], figures: Table, run_panels: list[Panel],
    report: Report | None, reason: str = "",
) -> str:  # fmt: skip
    """A run's figures and pictures, and its report under them, in the same look.

    Args:
        title: of the page.
        facts: name and words, above all.
        figures: against the baselines.
        run_panels: panels of the run.
        report: of its memory; None where there is none.
        reason: why there is none.

    Raises:
        MissingExtra: plotly is not installed.
    """
    head = f"<header><h1>{escape(title)}</h1>{_facts(facts)}</header>"
    body = f'<section id="figures" class="panel"><h2>Figures</h2>{figures.html()}</section>'
    body += _panels(run_panels)
    if report is None:
        words = f"There is no memory report of this run: {escape(reason)}"
        return _document(escape(title), head, f"{body}<p>{words}</p>")
    memory = f"<header><h1>How far back it learned</h1>{_header(report)}</header>"
    body += memory + _verdict(report) + _panels(panels.draw_panels(report))
    return _document(escape(title), head, body)


def _panels(drawn: list[Panel]) -> str:
    return f'<div class="panels">{"".join(panel.html() for panel in drawn)}</div>'


def _document(title: str, head: str, body: str) -> str:
    """A whole page; title, head and body are HTML."""
    data = files(__package__) / "data"
    style, script = ((data / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{chart.variables()}{style}</style></head><body>"
        f'{head}<main><p id="fault" role="alert" hidden></p>'
        "<noscript><p>The charts need scripts; the tables hold the same numbers.</p></noscript>"
        f"{body}</main>"
        f"<script>{library()}</script>"
        f'<script type="application/json" id="swaps">{json.dumps(chart.swaps())}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _header(report: Report) -> str:
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
    return _facts(facts)


def _facts(facts: dict[str, str]) -> str:
    pairs = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f"<dl>{pairs}</dl>"


def _verdict(report: Report) -> str:
    words, kind = f'<p>No trouble found.</p><span class="advice">{_caveat(report)}</span>', "calm"
    if problems := (*report.troubles, *report.cautions):
        words, kind = f"<ol>{''.join(map(_trouble, problems))}</ol>", "alarm"
    if report.cautions and not report.troubles:
        kind = "warn"
    return f'<section id="verdict" class="{kind}"><h2>Verdict</h2>{words}</section>'


def _caveat(report: Report) -> str:
    """The limits of a report without trouble, with the memory at the lag."""
    held = [c.r2_by_lag[report.lag] for c in report.capacities if report.lag < len(c.r2_by_lag)]
    if not held:
        return CAVEAT
    return f"{CAVEAT} There r² is {show(max(held))} at the lag, where 1 is every input."


def _trouble(trouble: Trouble) -> str:
    return (
        f"<li><strong>{_raised(trouble.sentence)}</strong>"
        f'<span class="advice">{_raised(trouble.advice)}</span></li>'
    )


def _raised(sentence: str) -> str:
    """Escaped, its powers of ten written as such."""
    powers = re.sub(r"\b10\^([+-]?[\d.]*\d)", r"10<sup>\1</sup>", escape(sentence))
    return powers.replace("r^2", "r²")
