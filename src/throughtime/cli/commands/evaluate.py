"""`throughtime evaluate RUN`: the figures of a trained model on held-out items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from throughtime.cli.shown import show_score

if TYPE_CHECKING:
    from throughtime.cli.app import Commands


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("evaluate", evaluate)
    parser.add_argument("run", type=Path, metavar="RUN", help="The folder of a finished run.")
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="validation or test. Default: test."
    )


def evaluate(run: Path, split: str) -> None:
    """Score a trained model on items it never trained on."""
    from throughtime.tasks.recipe import one_of
    from throughtime.train.result import trained
    from throughtime.train.run import read

    one_of("split", split, ("validation", "test"))
    task, model = trained(read(run))
    show_score(task, task.score(model, split), split)
