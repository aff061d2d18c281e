"""The page: header, verdict, panels, and plotly.js once."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from throughtime.diagnose.page import colours, panels
from throughtime.diagnose.page.chart import library
from throughtime.diagnose.page.panel import shown

if TYPE_CHECKING:
    from throughtime.diagnose.report import Module, Report
    from throughtime.diagnose.trouble import Trouble

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for it: nothing."""


def page(report: Report) -> str:
    """A report as HTML that loads nothing; it reads well on a phone, in light and in dark.

    Raises:
        MissingExtra: plotly is not installed.
    """
    data = files(__package__) / "data"
    style, script = ((data / name).read_text("utf-8") for name in ("page.css", "page.js"))
    cured = ", cured," if any(m.start for m in report.modules) else ""
    title = f"How far back {escape(report.model)}{cured} learns"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{colours.variables()}{style}</style></head><body>"
        f"<header><h1>{title}</h1>{_header(report)}</header><main>{_verdict(report)}"
        '<p id="fault" role="alert" hidden></p>'
        "<noscript><p>The charts need scripts; the tables hold the same numbers.</p></noscript>"
        f'<div class="panels">{"".join(p.html() for p in panels.drawn(report))}</div></main>'
        f"<script>{library()}</script>"
        f'<script type="application/json" id="swaps">{json.dumps(colours.swaps())}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _header(report: Report) -> str:
    layers = [f"{m.name or 'model'}: {m.cell}{_count(m)}" for m in report.modules]
    facts = {
        "Model": report.model,
        "Layers": "; ".join(layers),
        "Started by throughtime.cure": _starts(report),
        "Steps T": str(report.steps),
        "Rows B": str(report.rows),
        "Task lag": f"{report.lag} steps",
        "Loss": "not finite" if report.loss is None else shown(report.loss),
    }
    pairs = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f"<dl>{pairs}</dl>"


def _count(module: Module) -> str:
    """How many layers of how many units."""
    sizes = module.hidden_sizes
    number = f"{len(sizes)} layer{'s' if len(sizes) > 1 else ''}"
    each = " and ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
    both = ", both directions" if any(g.direction for g in module.gates) else ""
    return f", {number} of {each} units{both}"


def _starts(report: Report) -> str:
    return "; ".join(f"{m.name or 'model'}: {m.start}" for m in report.modules if m.start)


def _verdict(report: Report) -> str:
    said, kind = "<p>No trouble found.</p>", "calm"
    if report.troubles:
        said, kind = f"<ol>{''.join(map(_trouble, report.troubles))}</ol>", "alarm"
    return f'<section id="verdict" class="{kind}"><h2>Verdict</h2>{said}</section>'


def _trouble(trouble: Trouble) -> str:
    return (
        f"<li><strong>{_raised(trouble.sentence)}</strong>"
        f'<span class="advice">{_raised(trouble.advice)}</span></li>'
    )


def _raised(sentence: str) -> str:
    """Escaped, its powers of ten written as such."""
    return re.sub(r"\b10\^([+-]?[\d.]*\d)", r"10<sup>\1</sup>", escape(sentence))
