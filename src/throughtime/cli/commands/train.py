"""`throughtime train TASK`: trains a task, shows how it goes and what it reached."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from throughtime.cli.options import add_recipe_flags, given_values
from throughtime.cli.shown import show_after_training, show_findings, show_read, show_score

if TYPE_CHECKING:
    from throughtime.cli.app import Commands
    from throughtime.train.run import Run


def register(commands: Commands) -> None:
    """Adds the command."""
    from throughtime.tasks import available

    parser = commands.add("train", train)
    parser.usage = "throughtime train TASK [options]"
    parser.add_argument("task", metavar="TASK", help="What is learned, one of those below.")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="The run's folder. Default: the next free runs/TASK-NUMBER.",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="Go on with the run in --out, or with the newest one; with a larger --steps, or "
        "--patience, beyond what it began with.",
    )  # fmt: skip
    add_recipe_flags(parser, commands, available())


def train(task: str, out: Path | None, resume: bool, **flags: str | None) -> None:
    """Train a task. A run that was killed resumes to the same weights, bit for bit."""
    from throughtime.tasks import find
    from throughtime.train.begin import begin, go_on

    kind, given = find(task), given_values(flags)
    if resume:
        show_training(go_on(kind, out, given))
    else:
        with begin(kind, out, given) as run:
            show_training(run)


def show_training(run: Run) -> None:
    """Trains a run and shows what it reached."""
    from throughtime.tasks import find
    from throughtime.train.loop import fit
    from throughtime.train.result import score_and_keep

    task = find(run.recipe.task)(run.recipe)
    show_read(task)
    model = fit(run)
    score, figures = score_and_keep(run, task, model)
    show_score(task, score, "test", task.baselines("test"))
    show_findings(figures["findings"])
    print(
        f"{figures['parameters']} parameters, {figures['steps']} steps, "
        f"{figures['wall_seconds']:.0f} s ({figures['cpu_seconds']:.0f} s of processor)\n"
        f"run folder: {run.folder}"
    )
    if task.asks:
        print(f"try it: throughtime predict {shlex.quote(str(run.folder))} {task.asks}...")
    show_after_training(run, task, model)
