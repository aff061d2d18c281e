"""`throughtime evaluate RUN [FILE]`: a trained model's figures on held-out items, or a file's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from throughtime.cli.shown import show_score

if TYPE_CHECKING:
    from throughtime.cli import Commands


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("evaluate", evaluate)
    parser.add_argument("run", type=Path, metavar="RUN", help="The folder of a finished run.")
    parser.add_argument(
        "file", nargs="?", metavar="FILE",
        help="Another file with the columns of the training. What the training saw is left out.",
    )  # fmt: skip
    parser.add_argument(
        "--split", metavar="NAME", default="test",
        help="Without FILE: validation or test. Default: test.",
    )  # fmt: skip


def evaluate(run: Path, file: str | None, split: str) -> None:
    """Score a trained model, beside the baselines, on items it never trained on."""
    from throughtime.tasks.recipe import one_of
    from throughtime.train.result import load_trained
    from throughtime.train.run import read

    one_of("split", split, ("validation", "test"))
    task, model = load_trained(read(run))
    if file is not None:
        score, baselines = task.evaluate(model, file)
        show_score(task, score, "file", baselines)
        for note in score.notes:
            print(f"note: {file}: {note}", file=sys.stderr)
    else:
        show_score(task, task.score(model, split), split, task.baselines(split))
