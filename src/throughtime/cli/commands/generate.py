"""`throughtime generate RUN`: text that a trained model of language writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from throughtime.cli.options import number, whole_number

if TYPE_CHECKING:
    from throughtime.cli import Commands


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("generate", generate)
    parser.add_argument("run", type=Path, metavar="RUN", help="The folder of a finished run.")
    parser.add_argument(
        "--prompt", metavar="TEXT", default="", help="What it goes on from. Default: a new line."
    )
    parser.add_argument(
        "--length", type=whole_number, metavar="INT", default=500,
        help="How many characters or words it writes. Default: 500.",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=number, metavar="FLOAT", default=1.0,
        help="Below 1 it writes what is likelier; 0: always the likeliest. Default: 1.",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole_number, metavar="INT", default=0, help="Of what is drawn. Default: 0."
    )


def generate(run: Path, prompt: str, length: int, temperature: float, seed: int) -> None:
    """Write text. The prompt is printed first; the same seed writes the same text."""
    from throughtime.train.result import load_trained
    from throughtime.train.run import read

    task, model = load_trained(read(run))
    if prompt:
        task.check_item(prompt)
    for note in task.describe_unseen([prompt]):
        print(f"note: {note}", file=sys.stderr)
    pieces = task.write(model, prompt, length, temperature, seed)
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        if sys.stdout.isatty():
            sys.stdout.flush()
    sys.stdout.write("\n")
