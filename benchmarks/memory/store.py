"""Results on disk, seed by seed: a bar that was killed goes on where it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory.learn import Case, Learned

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


class Store:
    """The rows of one bar in one file, written after every seed.

    Args:
        file: where. One that is not complete is gone on with, a complete one is begun anew.

    Attributes:
        rows: everything measured so far.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        found = json.loads(file.read_text("utf-8")) if file.exists() else {"complete": True}
        self.rows: list[Row] = [] if found["complete"] else found["rows"]

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
        """Everything measured so far, one row a line; `complete` once every row is there."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        head = {"bar": self.file.stem, "torch": torch.__version__, "complete": complete}
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        text = json.dumps(head).removesuffix("}") + ', "rows": [\n' + lines + "\n]}\n"
        self.file.write_text(text, encoding="utf-8")
