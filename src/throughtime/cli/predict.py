"""`throughtime predict RUN WORD...`: what a trained model says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("predict")(predict)


def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    words: Annotated[list[str], typer.Argument(help="What the model is asked, one or more.")],
) -> None:
    """Ask a trained model. Prints each word, a tab, and the answer."""
    from throughtime.train.result import trained
    from throughtime.train.run import read

    task, model = trained(read(run))
    for word, answer in zip(words, task.answer(model, words), strict=True):
        typer.echo(f"{word}\t{answer}")
