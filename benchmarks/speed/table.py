"""A run's JSON as Markdown tables, losses among them, and the bars.

python -m benchmarks.speed.table benchmarks/speed/results/FILE.json [--details]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.speed.bar import judge
from benchmarks.speed.bars import BARS, asked
from benchmarks.speed.peers import OURS
from benchmarks.speed.row import Row, headline
from benchmarks.speed.spread import geometric_mean
from benchmarks.speed.works import WORKS

MIB = 2**20
SPREAD = ("mean", "lowest", "quarter", "median", "three quarters", "highest")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("file", type=Path)
    asked.add_argument("--details", action="store_true", help="every shape too")
    options = asked.parse_args()
    print(render(json.loads(options.file.read_text()), options.details))


def render(content: dict[str, Any], details: bool = True) -> str:
    """The whole run: what it was made on, a summary, every shape if asked, the bars."""
    rows: list[Row] = content["rows"]
    parts = [describe(content), *summary(rows)]
    if details:
        for work in WORKS:
            parts += detail(work.name, [row for row in rows if row["work"] == work.name])
    return "\n\n".join([*parts, *first(rows), bars(rows)])


def describe(content: dict[str, Any]) -> str:
    """Machine, versions and commit in a few lines."""
    machine, source = content["machine"], content["source"]
    versions = ", ".join(f"{n} {v}" for n, v in content["versions"].items())
    changed = " with changes" if source["dirty"] else ""
    clock = "processor time" if content["clock"] == "cpu" else "the wall's clock"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['torch_threads']} threads "
        f"({' '.join(machine['flags'])}); {versions}; commit {source['commit']}{changed}; "
        f"our backend: {content['backend']}; times and ratios by {clock}."
    )


def table(titles: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    titles = list(titles)
    rule = ["---"] * len(titles)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (titles, rule, *lines))


def summary(rows: list[Row]) -> list[str]:
    """One line for each work and cell: the spread of its ratios over shapes."""
    lines = []
    for work in WORKS:
        for cell in work.cells:
            found = [r for r in rows if (r["work"], r.get("cell")) == (work.name, cell)]
            heads = [head for head in map(headline, found) if head]
            if found:
                beside = ", ".join(sorted({name for name, _ in heads}))
                values = sorted(ratio["ratio"] for _, ratio in heads)
                red = len(found) - len(heads)
                lines.append([work.name, cell, beside, len(found), *spread(values), red])
    titles = ("work", "cell", "beside", "shapes", *SPREAD, "red")
    return [table(titles, lines)] if lines else []


def spread(values: list[float]) -> list[str]:
    """Geometric mean, lowest, quartiles, highest of ratios."""
    if not values:
        return ["-"] * 6
    middle = values * 2 if len(values) == 1 else values
    found = statistics.quantiles(middle, n=4, method="inclusive")
    return [f"{v:.2f}" for v in (geometric_mean(values), values[0], *found, values[-1])]


def detail(work: str, rows: list[Row]) -> list[str]:
    """Every shape: times, ratio with the quartiles over turns, processor time, memory.

    "others" is the share of the machine that other programs took meanwhile.
    """
    if not rows:
        return []
    others = list(dict.fromkeys(name for row in rows for name in row["times"] if name != OURS))
    titles = ["cell", "B", "T", "H", "ours ms", *(f"{n} ms" for n in others)]
    titles += ["ratio", "quartiles", "processor ms", "added MiB", "GFLOP/s", "others"]
    lines = [
        [*_shape(row), *_times(row, [OURS, *others]), *_ratio(row), *_costs(row)] for row in rows
    ]
    return [f"### {work}", table(titles, lines)]


def _shape(row: Row) -> list[object]:
    return [row[name] for name in ("cell", "B", "T", "H")]


def _times(row: Row, names: list[str]) -> list[str]:
    return [f"{milliseconds(row, name):.4g}" for name in names]


def milliseconds(row: Row, name: str) -> float:
    """A contender's median by the row's clock."""
    return 1e3 * float(row["times"][name][f"{row['clock']}_s"]["median"])


def _ratio(row: Row) -> list[str]:
    head = headline(row)
    if head is None:
        return ["red", ", ".join(row["red"])]
    found = head[1]
    return [f"{found['ratio']:.2f}", f"{found['q1']:.2f} to {found['q3']:.2f}"]


def _costs(row: Row) -> list[str]:
    ours = row["times"][OURS]
    both = [ours, row["times"][row["best"]]] if row["best"] else [ours]
    cpu = (f"{1e3 * t['cpu_s']['median']:.4g}" for t in both)
    added = (_mib(t["added_peak_bytes"]) for t in both)
    return [
        " / ".join(cpu),
        " / ".join(added),
        f"{ours['gflops']:.0f}",
        _share(row["others_share"]),
    ]


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def first(rows: list[Row]) -> list[str]:
    """First uses in processor time."""
    lines = [
        [r["what"], r["cache"], *(f"{1e3 * r['cpu_s'][q]:.0f}" for q in ("median", "q1", "q3"))]
        for r in rows
        if r["work"] == "first"
    ]
    titles = ("first use of a new cell", "cache", "processor ms", "quarter", "three quarters")
    return [table(titles, lines)] if lines else []


def bars(rows: list[Row]) -> str:
    """Every bar: what is asked, of how many rows it was measured, met or not, by how much."""
    verdicts = [judge(bar, rows) for bar in BARS]
    lines = (
        [v.bar.text, v.bar.goal_text, f"{v.shapes + v.red} of {asked(v.bar)}", v] for v in verdicts
    )
    return table(("bar", "goal", "rows", "found"), lines)


if __name__ == "__main__":
    main()
