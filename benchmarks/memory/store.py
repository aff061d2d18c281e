"""Results on disk, seed by seed, with what they were made on: a killed bar can go on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.memory.learn import Case, Learned
from benchmarks.speed.machine import describe_machine, describe_source, describe_versions

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


class Store:
    """The rows of one bar in one file, written after every seed.

    Args:
        file: where.
        resume: a file that is not complete is gone on with; a complete one is begun anew.

    Attributes:
        rows: everything measured so far.
        made_on: machine, versions and commit, which stand in the file's head.

    Raises:
        ValueError: the rows there were made on something else.
    """

    def __init__(self, file: Path, resume: bool = False) -> None:
        self.file = file
        self.rows: list[Row] = []
        self.made_on = {
            "machine": describe_machine(),
            "versions": describe_versions(),
            "source": describe_source(),
        }
        if resume and file.exists():
            self._go_on(json.loads(file.read_text("utf-8")))

    def _go_on(self, found: dict[str, Any]) -> None:
        """Take over the rows of a file that is not complete."""
        if found["complete"]:
            return
        differ = [name for name, value in self.made_on.items() if found.get(name) != value]
        if differ:
            raise ValueError(
                f"a killed bar goes on with the {', '.join(self.made_on)} it was begun with; "
                f"{self.file} differs in {', '.join(differ)}: go back to those, or delete the "
                "file to begin anew"
            )
        self.rows = found["rows"]

    def row(self, what: str, case: Case) -> Row:
        """The row of a case, empty where nothing of it was measured."""
        named = {"what": what, **case._asdict()}
        for row in self.rows:
            if all(row[key] == value for key, value in named.items()):
                return row
        lists: Row = {name: [] for name in ("seed", "errors", "steps", "clipped")}
        self.rows.append({**named, **lists, "cpu_seconds": 0.0, "solved": 0, "seeds": 0})
        return self.rows[-1]

    def add(self, row: Row, seed: int, learned: Learned, solved: float, begun: float) -> None:
        """One seed's outcome; `begun` is the processor time at its start, seconds."""
        share = learned.clipped
        row["seed"].append(seed)
        row["errors"].append(round(learned.error, 4))
        row["steps"].append(learned.steps)
        row["clipped"].append(share if share is None else round(share, 3))
        row["cpu_seconds"] = round(row["cpu_seconds"] + time.process_time() - begun, 1)
        row["solved"] = sum(error <= solved for error in row["errors"])
        row["seeds"] = len(row["errors"])
        self.write()

    def keep(self, row: Row) -> None:
        """A row that is whole."""
        self.rows.append(row)
        self.write()

    def write(self, complete: bool = False) -> None:
        """Everything measured so far, one row a line; `complete` once every row is there.

        The whole file at once, never a half one.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        head = {"bar": self.file.stem, **self.made_on, "complete": complete}
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        text = json.dumps(head).removesuffix("}") + ', "rows": [\n' + lines + "\n]}\n"
        fresh = self.file.with_suffix(".part")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, self.file)
