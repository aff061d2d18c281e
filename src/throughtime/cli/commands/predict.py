"""`throughtime predict RUN ITEM...`: what a trained model says, to words, files and a pipe.

A run on a table of the user's own is asked whole files, and answers with tables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from throughtime.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from throughtime.cli.app import Commands
    from throughtime.tasks import Task
    from throughtime.tasks.tables.task import TableTask

_ENDINGS = (".csv", ".parquet", ".jsonl")
_AT_ONCE = 1000  # items of a file or a pipe that are answered together

Item = tuple[str, str]
"""What the model is asked, and the line it stands in, as `FILE, line 3: `, if it stands in one."""


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("predict", predict)
    parser.add_argument("run", type=Path, metavar="RUN", help="The folder of a finished run.")
    parser.add_argument(
        "items", nargs="+", metavar="ITEM",
        help="What the model is asked, say a word; or a file of such, one a line, by a name that "
        "ends in .txt or has a slash; or - for those of standard input. A run on a table takes "
        "files as its training did.",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="Where the answers of a run on a table go, by its ending .csv, .parquet or .jsonl. "
        "Default: printed as JSON lines.",
    )  # fmt: skip


def predict(run: Path, items: list[str], out: Path | None) -> None:
    """Ask a trained model. Prints each item, a tab, and the answer; what has none is named."""
    from throughtime.errors import OptionError
    from throughtime.tasks.tables.task import TableTask
    from throughtime.train.result import trained
    from throughtime.train.run import read

    task, model = trained(read(run))
    if isinstance(task, TableTask) and (not task.lines or out or _are_tables(items)):
        _answer_tables(task, model, items, out)
        return
    if out is not None:
        raise OptionError(f"--out is for runs on a table, and {run} is one of {task.name}")
    waits = "-" in items and sys.stdin is not None and sys.stdin.isatty()
    asked, failed = _asked(items), False
    while part := list(islice(asked, 1 if waits else _AT_ONCE)):
        askable = [text for text, where in part if _can_be_asked(task, text, where)]
        failed |= len(askable) < len(part)
        for text, answer in zip(askable, task.answer(model, askable), strict=True):
            print(f"{text}\t{answer}", flush=waits)
    if failed:
        sys.exit(2)


def _are_tables(items: list[str]) -> bool:
    """Whether items are files that hold tables, and no lines of text."""
    files = [item for item in items if os.path.isfile(item)]
    return len(files) == len(items) and not any(item.endswith(".txt") for item in items)


def _answer_tables(task: TableTask, model: nn.Module, files: list[str], out: Path | None) -> None:
    """Prints the answers to files, or writes them; notes on what was not known go beside."""
    import polars as pl

    from throughtime.errors import OptionError
    from throughtime.tasks.recipe import one_of

    ending = one_of("the ending of --out", out.suffix, _ENDINGS) if out else ""
    if out and any(os.path.realpath(out) == os.path.realpath(file) for file in files):
        raise OptionError(f"--out must be another file than those that are read, got {out}")
    frames = []
    for file in files:
        frame, notes = task.predict(model, task.table(file))
        frames.append(frame)
        for note in notes:
            print(f"note: {file}: {note}", file=sys.stderr)
    whole = pl.concat(frames, how="vertical_relaxed")
    if not out:
        print(whole.write_ndjson(), end="")
    elif ending == ".csv":
        whole.write_csv(out)
    elif ending == ".parquet":
        whole.write_parquet(out)
    else:
        whole.write_ndjson(out)


def _can_be_asked(task: Task, text: str, where: str) -> bool:
    """Whether the task takes an item; else says why not."""
    try:
        task.check_item(text)
    except DataError as error:
        print(f"error: {where}{error}", file=sys.stderr)
        return False
    return True


def _asked(items: Iterable[str]) -> Iterator[Item]:
    for item in items:
        if item == "-":
            yield from _lines(sys.stdin.buffer if sys.stdin else (), "standard input")
        elif "/" in item or item.endswith(".txt") or (Path(item).suffix and os.path.exists(item)):
            with open(item, "rb") as file:
                yield from _lines(file, item)
        else:
            yield item, ""


def _lines(file: Iterable[bytes], name: str) -> Iterator[Item]:
    """The lines that are not empty; bytes that are no text stay to be named."""
    for number, line in enumerate(file, start=1):
        text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
        if text:
            yield text, f"{name}, line {number}: "
