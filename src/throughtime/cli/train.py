"""`throughtime train TASK`: trains a task, shows how it goes and what it reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from throughtime.cli.memory_report import show_after_training
from throughtime.cli.options import with_recipe_flags
from throughtime.cli.shown import show_score

if TYPE_CHECKING:
    from throughtime.train.run import Run


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("train")(with_recipe_flags(train))


def train(
    task: Annotated[
        str, typer.Argument(help="What is learned: pronounce, or a memory task, say latch.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder. Default: the next free runs/TASK-NUMBER."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", metavar=" ", help="Go on with the run in --out, or with the newest one."
        ),
    ] = False,
    **flags: Any,
) -> None:
    """Train a task. A run that was killed resumes to the same weights, bit for bit."""
    from throughtime.tasks import find
    from throughtime.train.begin import begin, go_on

    kind = find(task)
    given = {name: value for name, value in flags.items() if value is not None}
    show_training(go_on(kind, out, given) if resume else begin(kind, out, given))


def show_training(run: Run) -> None:
    """Trains a run and shows what it reached."""
    # Lightning is slow to import and mistakes above are quick to tell.
    from throughtime.tasks import find
    from throughtime.train.fit import fit
    from throughtime.train.result import score_and_keep

    task = find(run.recipe.task)(run.recipe)
    model = fit(run)
    score, figures = score_and_keep(run, task, model)
    show_score(score, task.chance("test"), "test")
    typer.echo(
        f"{figures['parameters']} parameters, {figures['steps']} steps, "
        f"{figures['wall_seconds']:.0f} s ({figures['cpu_seconds']:.0f} s of processor)\n"
        f"run folder: {run.folder}\n"
        f"try it: throughtime predict {run.folder} WORD..."
    )
    show_after_training(run, task, model)
