"""Measures what options cost, and writes one JSON.

    python -m benchmarks.options.run                  all of it, some minutes
    python -m benchmarks.options.run --only packed resets

float32, torch's own number of threads. The two of a line take turns, each repeat after a short
pause and a call that is not timed; the ratio is that of the medians. Values and gradients are
compared at the very shape first: a red line has no ratio.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import checkpoint, masked, norms, one_row, packed, resets
from benchmarks.options.line import Figure, Line, Lines
from benchmarks.speed.machine import describe_machine, describe_source, describe_versions
from benchmarks.speed.measure import Effort, interleave
from benchmarks.speed.spread import quartiles, ratio

RESULTS = Path(__file__).resolve().parent / "results"
PARTS: dict[str, Callable[[], Lines]] = {
    part.__name__.rsplit(".", 1)[1]: part.lines
    for part in (packed, resets, masked, checkpoint, norms, one_row)
}


def main(words: list[str] | None = None) -> None:
    """One run and its JSON."""
    plain = argparse.RawTextHelpFormatter
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    asked.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    asked.add_argument("--seconds", type=float, default=2.0, help="of each line")
    options = asked.parse_args(words)
    torch.manual_seed(20131)
    source = describe_source()
    about = {"machine": describe_machine(), "versions": describe_versions(), "source": source}
    rows = []
    for name in options.only:
        for found in PARTS[name]():
            rows.append(measured(found, options.seconds))
            print(text(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    part = "" if len(options.only) == len(PARTS) else f"-{'-'.join(options.only)}"
    file = RESULTS / f"{date.today().isoformat()}-{source['commit']}{part}.json"
    file.write_text(json.dumps({**about, "meaning": __doc__, "rows": rows}, indent=1) + "\n")
    print(file)


def measured(found: Line | Figure, seconds: float) -> dict[str, Any]:
    """The row of a line; without times where it is red."""
    if isinstance(found, Figure):
        return asdict(found) | {"met": found.value <= found.goal}
    row = {"name": found.name, "beside": found.beside, "parity": asdict(found.parity),
           "goal": found.goal, "at_most": found.at_most}  # fmt: skip
    if not found.parity.ok:
        return row | {"met": False}
    times = interleave({"ours": found.ours, "theirs": found.theirs}, Effort(seconds))
    ours, theirs = times["ours"].wall, times["theirs"].wall
    got = ratio(ours, theirs) if found.at_most else ratio(theirs, ours)
    met = got["ratio"] <= found.goal if found.at_most else got["ratio"] >= found.goal
    return row | {"ours_s": quartiles(ours), "theirs_s": quartiles(theirs), **got, "met": met}


def text(row: dict[str, Any]) -> str:
    """One row in one line."""
    verdict = "met" if row["met"] else "NOT MET"
    if "value" in row:
        return f"{row['name']}: {row['value']:.3g} (at most {row['goal']:g}: {verdict})"
    if "ratio" not in row:
        return f"{row['name']}: RED, no ratio; {row['parity']}"
    side = "at most" if row["at_most"] else "at least"
    way = "of the time of" if row["at_most"] else "times as fast as"
    spread, ms = f"{row['q1']:.2f} to {row['q3']:.2f}", row["ours_s"]["median"] * 1e3
    return (
        f"{row['name']}: {row['ratio']:.2f} ({spread}) {way} {row['beside']} "
        f"({side} {row['goal']:g}: {verdict}); {ms:.3g} ms"
    )


if __name__ == "__main__":
    main()
