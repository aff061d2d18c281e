"""A page as a reader has it: its tables, its charts' data, and what it would load."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


@dataclass
class Panel:
    """One section: its text, its tables by caption, and what its charts draw."""

    text: str = ""
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    charts: list[dict[str, Any]] = field(default_factory=list)

    def column(self, caption: str, head: str) -> list[str]:
        """The cells below one column's head, empty ones left out."""
        names, *rows = self.tables[caption]
        return [row[names.index(head)] for row in rows if row[names.index(head)]]

    def curve(self, name: str, chart: int = 0) -> list[Any]:
        """What a chart has as y of the series of this name."""
        (found,) = [t["y"] for t in self.charts[chart]["data"] if t.get("name") == name]
        return found


class Page(HTMLParser):
    """Reads a page's text.

    Attributes:
        panels: by the number that stands before their question.
        loads: every attribute through which a browser would fetch something.
        scripts: every script that runs.
        text: all that is read and no script.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.panels: dict[int, Panel] = {}
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        for name in ("src", "href", "srcset", "data", "action", "background"):
            if name in given:
                self.loads.append(f"{tag} {name}={given[name]}")
        if tag in ("meta", "path", "br"):
            return
        self._inside.append((tag, given))
        if tag == "section" and (given.get("id") or "").startswith("panel-"):
            self.panels[int(str(given["id"]).removeprefix("panel-"))] = Panel()
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop()[0] != tag:
            pass
        if tag == "table":
            self._panel().tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        tag, given = self._inside[-1] if self._inside else ("", {})
        if tag == "script":
            if given.get("type") != "application/json":
                self.scripts.append(data)
            elif given.get("id") is None:
                self._panel().charts.append(json.loads(data))
            return
        self.text += data
        if tag == "caption":
            self._caption += data
        if tag in ("td", "th"):
            self._rows[-1][-1] += data
        if self.panels:
            self._panel().text += data

    def _panel(self) -> Panel:
        return self.panels[max(self.panels)]
