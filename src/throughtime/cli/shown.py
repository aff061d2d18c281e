"""How figures, examples and the memory report look on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from throughtime.diagnosis.report import Report
    from throughtime.tasks import Task
    from throughtime.tasks.task import Score
    from throughtime.train.run import Run


def show_score(
    task: Task, score: Score, split: str, baselines: Mapping[str, Mapping[str, float]]
) -> None:
    """Prints the split, the rule, the figures beside the baselines', and examples beside truth."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"\n{score.split}\n{score.rule}\n")
    figures = Table("figure", split, *baselines, box=None, pad_edge=False)
    for name, value in score.metrics.items():
        beside = [task.shown(one[name]) if name in one else "" for one in baselines.values()]
        figures.add_row(name, task.shown(value), *beside)
    console.print(figures)
    examples = Table("given", "answer", "truth", "", box=None, pad_edge=False)
    for one in score.examples:
        examples.add_row(one.given, one.answer, one.truth, "right" if one.right else "wrong")
    console.print()
    console.print(examples)
    if "chance" not in baselines and (sentence := _beaten(task, score, baselines)):
        console.print(f"\n{sentence}")


def _beaten(task: Task, score: Score, baselines: Mapping[str, Mapping[str, float]]) -> str:
    """The sentence on a net that is no better than a baseline by the first figure; or nothing."""
    headline = next(iter(score.metrics))
    sign = -1 if task.more_is_better else 1
    best = min(baselines, key=lambda name: sign * baselines[name][headline])
    value, bar = score.metrics[headline], baselines[best][headline]
    if sign * value < sign * bar:
        return ""
    return (
        f"The net does not beat the best baseline: {headline} {task.shown(value)}, and "
        f"{best} has {task.shown(bar)}; take that one, or train longer, say with --preset full."
    )


def show_findings(findings: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Prints the tables beside a trained model's figures."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for name, rows in findings.items():
        table = Table(*rows[0], box=None, pad_edge=False) if rows else Table()
        for row in rows:
            table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(f"\n{name.replace('_', ' ')}")
        console.print(table)


def show_read(task: Task) -> None:
    """Prints what was read of the user's data, where the task reads any."""
    from rich.console import Console
    from rich.table import Table

    rows = Table(show_header=False, box=None, pad_edge=False)
    for name, words in task.read():
        rows.add_row(name, words)
    if rows.row_count:
        Console(highlight=False, soft_wrap=True, markup=False).print(rows)


BATCHES, ROWS = 8, 16
"""Of a run's training data, so that its report takes seconds."""


def of_run(
    task: Task, model: nn.Module, *, lag: int | None = None, clip: float | None = None,
    truncation: int | None = None,
) -> Report:  # fmt: skip
    """The report of a run's model on some of its training data; it clips as the run did.

    Raises:
        OptionError, ShapeError, TypeError: what cannot be looked at.
    """
    from throughtime import diagnose

    recipe = task.recipe
    posed = task.posed(model, BATCHES, ROWS)
    if clip is None and recipe.clip == "norm":
        clip = recipe.clip_threshold
    return diagnose(posed.model, posed.batches, posed.loss, lag, clip=clip, truncation=truncation)


def keep(report: Report, folder: Path) -> None:
    """Writes report.json and report.html and says where.

    Raises:
        MissingExtra: plotly is not installed; report.json is written before.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.html"):
        report.save(folder / name)
    print(f"report: {folder / 'report.html'}")


def show_after_training(run: Run, task: Task, model: nn.Module, plots: str = "") -> None:
    """Prints a run's verdict and keeps its report; the training stands, whatever comes of it.

    Args:
        run, task, model: a run that has ended.
        plots: the kind of files that its charts stand in too, "png" or "svg"; "": none.
    """
    from throughtime.cli.page import keep_page, keep_plots
    from throughtime.diagnosis.report.text import list_verdict
    from throughtime.errors import MissingExtra

    report, reason = None, ""
    try:
        report = of_run(task, model)
        print("\nHow far back it learned:")
        for line in list_verdict(report):
            print(line)
    except (ValueError, TypeError, RuntimeError, MissingExtra) as error:
        reason = str(error)
        print(f"\nThere is no memory report of this run: {reason}")
    try:
        keep_page(run, task, model, report, reason)
    except (ValueError, OSError, MissingExtra) as error:
        print(f"\nThere is no page of this run: {error}")
    try:
        if plots:
            keep_plots(run, task, model, plots)
    except (ValueError, OSError, MissingExtra) as error:
        print(f"\nThere are no plots of this run: {error}")
