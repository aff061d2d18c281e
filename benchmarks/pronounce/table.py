"""The main job at equal steps: cells, directions and merges side by side.

    python benchmarks/pronounce/table.py [--steps 1000] [--out FOLDER]

Trains each row with the quick preset's other values, one thread and one seed, and writes
table.json beside this file after every row; rows that are there already are kept. What the columns
mean is in the JSON. `--show` prints the table and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

import throughtime

HERE = Path(__file__).resolve().parent
TABLE = HERE / "table.json"

MEANING = {
    "wer": "share of held-out words whose answer equals no listed pronunciation, without stress",
    "per": "edits to the closest listed pronunciation over its sounds, without stress",
    "cpu_seconds": "processor time of training with its validations, one thread",
    "peak_mebibytes": "largest resident memory of the process, the imports among it",
    "spread": "one seed a row: differences of WER below about one point say nothing",
}

ROWS = [
    {"cell": cell, "directions": directions, "merge": merge}
    for cell, (directions, merge) in product(
        ("rnn", "gru", "lstm"), ((1, "concat"), (2, "concat"), (2, "sum"))
    )
]


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--steps", type=int, default=1000)
    asked.add_argument("--out", type=Path, default=None, help="keeps the run folders here")
    asked.add_argument("--show", action="store_true", help="prints the table and trains nothing")
    options = asked.parse_args()
    table = read(options.steps)
    if not options.show:
        with tempfile.TemporaryDirectory() as scratch:
            fill(table, options.out or Path(scratch))
    show(table)


def read(steps: int) -> dict[str, Any]:
    """The table as far as it was measured; an empty one of another number of steps."""
    if TABLE.exists():
        table: dict[str, Any] = json.loads(TABLE.read_text())
        if table["steps"] == steps:
            return table
    return {"meaning": MEANING, "steps": steps, "machine": machine(), "rows": []}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "throughtime": throughtime.__version__,
        "commit": git("rev-parse", "--short", "HEAD"),
    }


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip()


def fill(table: dict[str, Any], folder: Path) -> None:
    """Trains the rows that are missing, one process each."""
    done = [{key: row[key] for key in ROWS[0]} for row in table["rows"]]
    for wanted in ROWS:
        if wanted not in done:
            table["rows"].append(wanted | train(wanted, table["steps"], folder))
            TABLE.write_text(json.dumps(table, indent=2) + "\n")


def train(wanted: dict[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """One run; its figures on the test split."""
    out = folder / "-".join(str(value) for value in wanted.values())
    flags = {**wanted, "steps": steps, "threads": 1, "out": out}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    program = (
        "import resource, sys; from throughtime.cli import main; code = main(); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "pronounce", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    results = json.loads((out / "results.json").read_text())
    return {
        "wer": results["test"]["metrics"]["wer"],
        "per": results["test"]["metrics"]["per"],
        "cpu_seconds": results["cpu_seconds"],
        "parameters": results["parameters"],
        "peak_mebibytes": int(done.stderr.split()[-1]) // 1024,
    }


def show(table: dict[str, Any]) -> None:
    """The table as Markdown."""
    print("| cell | directions | merge | WER % | PER % | processor s | parameters |")
    print("|---|---|---|---|---|---|---|")
    for row in table["rows"]:
        merge = row["merge"] if row["directions"] == 2 else "-"
        print(
            f"| {row['cell']} | {row['directions']} | {merge} | {100 * row['wer']:.1f} "
            f"| {100 * row['per']:.1f} | {row['cpu_seconds']:.0f} | {row['parameters']:,} |"
        )


if __name__ == "__main__":
    main()
