"""The JSON of a run: written after every row, so that a run that was cut off can go on."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.speed.row import Row

RESULTS = Path(__file__).resolve().parent / "results"
SAME = ("machine", "versions", "source", "backend", "clock")  # what a resumed run must agree in


class Store:
    """The rows of one run and what they were made on."""

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file = file
        self.content: dict[str, Any] = {**about, "rows": []}

    @property
    def rows(self) -> list[Row]:
        """All rows so far."""
        rows: list[Row] = self.content["rows"]
        return rows

    def has(self, key: str) -> bool:
        """Whether the row is there already."""
        return any(row["key"] == key for row in self.rows)

    def add(self, row: Row) -> None:
        """One more row, on disk before this returns."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """The whole file at once: never a half one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".part")
        fresh.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(fresh, self.file)


def resume(file: Path, about: dict[str, Any], quiet: float = 1.0) -> Store:
    """The run of `file`, to be gone on with.

    Args:
        file: its JSON.
        about: what the rest would be made on.
        quiet: rows during which others took a larger share of the machine are dropped.

    Raises:
        ValueError: it was made on another machine, version, commit or backend.
    """
    content = json.loads(file.read_text())
    differ = [name for name in SAME if content.get(name) != about[name]]
    if differ:
        raise ValueError(
            f"--resume needs a run of the same {', '.join(SAME)}; {file} differs in "
            f"{', '.join(differ)}: start a new one without --resume"
        )
    store = Store(file, about)
    content["rows"] = [r for r in content["rows"] if (r.get("others_share") or 0.0) <= quiet]
    store.content = content
    return store


def usual_file(source: dict[str, Any], full: bool) -> Path:
    """results/<date>-<commit>[-changed][-full].json."""
    words = [date.today().isoformat(), source["commit"] or "unknown"]
    words += ["changed"] * source["dirty"] + ["full"] * full
    return RESULTS / f"{'-'.join(words)}.json"
