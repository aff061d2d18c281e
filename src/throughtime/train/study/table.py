"""What the outcomes of a study mean: one row for each cell, start and length."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from throughtime.train.study.learn import Outcome

HEADINGS = (
    "cell", "start", "length", "solved", "steps", "seconds", "metric", "parameters", "ms a step",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """All seeds of one cell, start and length.

    Attributes:
        cell, start, length: which; the length in steps.
        seeds: how many runs ended.
        solved: how many of them solved the task.
        steps, seconds: medians, over those that did, until the first validation that shows it.
        metric: median over the runs that did not fail, on the test split.
        parameters: how many numbers are trained.
        step_milliseconds: of the processor; median of a training step.
        failed: the reasons of runs that ended before their time.
    """

    cell: str
    start: str
    length: int
    seeds: int
    solved: int
    steps: float | None
    seconds: float | None
    metric: float | None
    parameters: int
    step_milliseconds: float
    failed: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """As text, under HEADINGS."""
        return (
            self.cell, self.start, str(self.length), f"{self.solved} of {self.seeds}",
            _said(self.steps, ".0f"), _said(self.seconds, ".1f"), _said(self.metric, ".3g"),
            str(self.parameters), f"{self.step_milliseconds:.2f}",
        )  # fmt: skip


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """One row each, by length, cell and start."""
    groups: dict[tuple[int, str, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.length, one.cell, one.start), []).append(one)
    return [_row(group) for _, group in sorted(groups.items())]


def _row(group: list[Outcome]) -> Row:
    group = sorted(group, key=lambda one: one.seed)
    first, solved = group[0], [one for one in group if one.solved]
    return Row(
        first.cell, first.start, first.length, len(group), len(solved),
        _median([one.solved_at_step for one in solved]),
        _median([one.solved_at_seconds for one in solved]),
        _median([one.metric for one in group]),
        first.parameters,
        statistics.median(one.step_milliseconds for one in group),
        tuple(f"seed {one.seed}: {one.failed}" for one in group if one.failed),
    )  # fmt: skip


def reach(table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The longest length that most seeds solved, a line a cell and a column a start.

    `-` where there is none, nothing where nothing was run.
    """
    starts = list(dict.fromkeys(row.start for row in table))
    lines = []
    for cell in dict.fromkeys(row.cell for row in table):
        own = {start: [r for r in table if (r.cell, r.start) == (cell, start)] for start in starts}
        lines.append([cell, *(_longest(part) for part in own.values())])
    return ["cell", *starts], lines


def _longest(table: Sequence[Row]) -> str:
    solved = [row.length for row in table if 2 * row.solved > row.seeds]
    return str(max(solved)) if solved else "-" * bool(table)


def failures(table: Sequence[Row]) -> list[str]:
    """A line for each run that ended before its time."""
    return [f"{r.cell} from {r.start} over {r.length}, {why}" for r in table for why in r.failed]


def page(title: str, table: Sequence[Row], remarks: Sequence[str]) -> str:
    """The report in Markdown."""
    parts = [
        f"# {title}",
        "The longest length, in steps, that most seeds solved:",
        _markdown(*reach(table)),
        "Every cell, start and length; steps and seconds until it is solved are medians over the "
        "seeds that solve it, the metric is the median on the test split:",
        _markdown(HEADINGS, [row.cells() for row in table]),
        "\n".join(f"- {line}" for line in [*failures(table), *remarks]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
