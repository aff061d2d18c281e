"""`throughtime evaluate RUN`: the figures of a trained model on held-out items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from throughtime.cli.shown import show_score


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
) -> None:
    """Score a trained model on items it never trained on."""
    from throughtime.tasks.choices import one_of
    from throughtime.train.result import trained
    from throughtime.train.run import read

    one_of("split", split, ("validation", "test"))
    task, model = trained(read(run))
    show_score(task.score(model, split), task.chance(split), split)
