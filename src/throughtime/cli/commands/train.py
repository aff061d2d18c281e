"""`throughtime train TASK`: trains a task, shows how it goes and what it reached."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from throughtime.cli import add_recipe_flags, parse_flags
from throughtime.cli.shown import keep_page, keep_plots, report_run, show_score, show_table
from throughtime.diagnosis.report import list_verdict
from throughtime.errors import MissingExtra, OptionError
from throughtime.tasks import Task, available, find

if TYPE_CHECKING:
    from throughtime.cli import Commands
    from throughtime.train.run import Run
    from throughtime.train.world import World

NUMBERS = (
    ("processes", 1, "Processes on this machine that share the parts of every batch."),
    ("nodes", 1, "Machines; each runs the same command with its NODE_RANK (docs/scale.md)."),
    ("wait", 120, "Seconds to wait for all processes to come."),
)
"""Flags of every task that say where a run goes on: name, default, help."""

_WATCH = (
    "Measure at steps 1, N + 1, 2 N + 1, ... how far back gradients reach and how far weights "
    "move: rows of metrics.jsonl, and curves in report.html. Default: never."
)


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("train", train)
    parser.usage = "throughtime train TASK [options]"
    parser.add_argument("task", metavar="TASK", help="What is learned, one of those below.")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="The run's folder. Default: the next free runs/TASK-NUMBER.",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="Go on with the run in --out, or with the newest one; with a larger --steps, "
        "--patience or --parts, beyond what it began with.",
    )  # fmt: skip
    parser.add_argument(
        "--plots", choices=("png", "svg"), default="",
        help="Also keep the charts of the run's page as files of this kind; needs the extra plots.",
    )  # fmt: skip
    for name, default, text in NUMBERS:
        parser.add_number(f"--{name}", default, f"{text} Default: {default}.")
    parser.add_number("--watch", None, _WATCH, "N")
    add_recipe_flags(parser, commands, available())
    parser.set_defaults(words=("train", *commands.words))


def train(
    words: tuple[str, ...], task: str, out: Path | None, resume: bool, processes: int, nodes: int,
    wait: int, plots: str, watch: int | None, **flags: str | None,
) -> None:  # fmt: skip
    """Train a task. A run that was killed resumes to the same weights, bit for bit."""
    from throughtime.train.launch import launch

    if watch is not None and watch < 1:
        raise OptionError(f"--watch must be a positive number of steps, got {watch}")
    kind, options = find(task), parse_flags(flags)
    code = launch(words, processes, nodes, wait)
    if code is None:
        _train(kind, out, resume, options, wait, plots, watch)


def _train(
    kind: type[Task], out: Path | None, resume: bool, options: Mapping[str, Any], wait: int,
    plots: str, watch: int | None,
) -> None:  # fmt: skip
    """Trains in this process, and in those that a launcher began with it."""
    from throughtime.train.launch import join
    from throughtime.train.run import begin, go_on

    with join(wait) as world:
        if world.rank:
            from throughtime.train.loop import follow

            follow(world)
        elif resume:
            show_training(go_on(kind, out, options), world, plots, watch)
        else:
            with begin(kind, out, options, world.size) as run:
                show_training(run, world, plots, watch)


def show_training(run: Run, world: World, plots: str, watch: int | None) -> None:
    """Trains a run, shows what it reached, and keeps its report as `_show_report`.

    Every `watch` steps, where it is given, how gradient flows is measured.
    """
    from throughtime.diagnosis.training import LoopFlow
    from throughtime.train.loop import fit
    from throughtime.train.result import score_and_keep

    task = find(run.recipe.task)(run.recipe)
    show_table(task.describe_data())
    world.leave_resume(shlex.split(run.resume)[1:])
    model = fit(run, [LoopFlow(watch)] if watch else (), world)
    score, figures = score_and_keep(run, task, model)
    show_score(task, score, "test", task.baselines("test"))
    _show_findings(figures["findings"])
    print(
        f"{figures['parameters']} parameters, {figures['steps']} steps, "
        f"{figures['wall_seconds']:.0f} s ({figures['cpu_seconds']:.0f} s of processor)\n"
        f"run folder: {run.folder}"
    )
    if task.item_name:
        print(f"try it: throughtime predict {shlex.quote(str(run.folder))} {task.item_name}...")
    _show_report(run, task, model, plots)


def _show_findings(findings: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Prints what a task found of its trained model, in tables."""
    for name, rows in findings.items():
        print(f"\n{name.replace('_', ' ')}")
        cells = ([f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
                 for row in rows)  # fmt: skip
        show_table(cells, *(rows[0] if rows else ()))


def _show_report(run: Run, task: Task, model: nn.Module, plots: str) -> None:
    """Prints a run's verdict and keeps its report; the training stands, whatever comes of it.

    Its charts are saved as files too where `plots` is "png" or "svg".
    """
    report, reason = None, ""
    try:
        report = report_run(task, model)
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
