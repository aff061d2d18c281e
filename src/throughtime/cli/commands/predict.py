"""`throughtime predict`, `evaluate` and `generate RUN`: what a trained model says.

It is asked words, files and a pipe; a run on a table of the user's own is asked whole files, and
answers with tables. Its figures are those on held-out items, or on a file's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import throughtime
from throughtime.cli.shown import show_score
from throughtime.compiler.runtime.threads import usable
from throughtime.errors import DataError, OptionError
from throughtime.tasks import Task
from throughtime.tasks.recipe import one_of
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.task import TableTask
from throughtime.tasks.tables.text import names_table

if TYPE_CHECKING:
    import polars as pl

    from throughtime.cli import Commands, Parser

_ENDINGS = (".csv", ".parquet", ".jsonl")
_AT_ONCE = 1000  # items of a file or a pipe that are answered together

Item = tuple[str, str]
"""What the model is asked, and the line it stands in, as `FILE, line 3: `, if it stands in one."""


def register(commands: Commands) -> None:
    """Adds the commands."""
    for name, call, add in (
        ("predict", predict, _add_items), ("evaluate", evaluate, _add_split),
        ("generate", generate, _add_prompt),
    ):  # fmt: skip
        parser = commands.add(name, call)
        parser.add_argument("run", type=Path, metavar="RUN", help="The folder of a finished run.")
        add(parser)


def _add_items(parser: Parser) -> None:
    """What is asked, and where answers go."""
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
    parser.add_argument(
        "--on", choices=("local", "ray"), default="local",
        help="Who answers: this process, or Ray, block by block of a large file: lines of text, or "
        "tables whose series are answered by themselves (classify, translate). Default: local.",
    )  # fmt: skip
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="A Ray that is there, which must see the run's folder. Default: one made here.",
    )


def _add_split(parser: Parser) -> None:
    """What is scored."""
    parser.add_argument(
        "file", nargs="?", metavar="FILE",
        help="Another file with the columns of the training. What the training saw is left out.",
    )  # fmt: skip
    parser.add_argument(
        "--split", metavar="NAME", default="test",
        help="Without FILE: validation or test. Default: test.",
    )  # fmt: skip


def _add_prompt(parser: Parser) -> None:
    """What is written, and how."""
    parser.add_argument(
        "--prompt", metavar="TEXT", default="", help="What it goes on from. Default: a new line."
    )
    parser.add_number("--length", 500, "How many characters or words it writes. Default: 500.")
    parser.add_number(
        "--temperature",
        1.0,
        "Below 1 it writes what is likelier; 0: always the likeliest. Default: 1.",
        "FLOAT",
        whole=False,
    )
    parser.add_number("--seed", 0, "Of what is drawn. Default: 0.")


def predict(run: Path, items: list[str], out: Path | None, on: str, address: str | None) -> None:
    """Ask a trained model. Prints each item, a tab, and the answer; what has none is named."""
    task, model = _open(run)
    if out is not None and not isinstance(task, TableTask):
        raise OptionError(f"--out is for runs on a table, and {run} is one of {task.name}")
    _check_out(out, items)
    if on == "ray":
        if not _answer_blocks(run, task, items, out, address):
            sys.exit(2)
        return
    if address is not None:
        raise OptionError(f"address is a Ray's, got {address!r} with --on local")
    if isinstance(task, TableTask) and not (task.lines and _are_lines(items)):
        _answer_tables(task, model, items, out)
    elif not _answer_lines(task, model, items, out):
        sys.exit(2)


def evaluate(run: Path, file: str | None, split: str) -> None:
    """Score a trained model, beside the baselines, on items it never trained on."""
    one_of("split", split, ("validation", "test"))
    task, model = _open(run)
    if file is not None:
        score, baselines = task.evaluate(model, file)
        show_score(task, score, "file", baselines)
        _print_notes(score.notes, f"{file}: ")
    else:
        show_score(task, task.score(model, split), split, task.baselines(split))


def generate(run: Path, prompt: str, length: int, temperature: float, seed: int) -> None:
    """Write text. The prompt is printed first; the same seed writes the same text."""
    task, model = _open(run)
    if prompt:
        task.check_item(prompt)
    _print_notes(task.describe_unseen([prompt]))
    pieces = task.write(model, prompt, length, temperature, seed)
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        if sys.stdout.isatty():
            sys.stdout.flush()
    sys.stdout.write("\n")


def _open(run: Path) -> tuple[Task, nn.Module]:
    trained = throughtime.load(run)
    return trained.task, trained.model


def _are_lines(items: list[str]) -> bool:
    """Whether items are lines of text or files of such, and no tables."""
    tables = (os.path.isfile(item) or names_table(item) for item in items)
    return any(not table or item.endswith(".txt")
               for item, table in zip(items, tables, strict=True))  # fmt: skip


def _check_out(out: Path | None, items: list[str]) -> None:
    """Raises OptionError where answers cannot go there."""
    if out is None:
        return
    one_of("the ending of --out", out.suffix, _ENDINGS)
    if any(os.path.realpath(out) == os.path.realpath(item) for item in items):
        raise OptionError(f"--out must be another file than those that are read, got {out}")
    if out.is_dir():
        raise OptionError(f"--out must be a file, got the folder {out}; say, {out / 'answers.csv'}")
    if not out.parent.is_dir():
        raise OptionError(f"the folder of --out must be there, got {out}; make {out.parent} first")


def _answer_lines(task: Task, model: nn.Module, items: list[str], out: Path | None) -> bool:
    """Prints each item with its answer, or writes both; returns whether all had one."""
    import polars as pl

    waits = "-" in items and sys.stdin is not None and sys.stdin.isatty()
    schema = {"given": pl.String, "answer": pl.String}
    every, frames = True, [pl.DataFrame(schema=schema)]
    for askable, whole in _check_items(task, items, 1 if waits else _AT_ONCE):
        every &= whole
        answers = task.answer(model, askable)
        frame = pl.DataFrame({"given": askable, "answer": answers}, schema=schema)
        if out is None:
            _print_lines(frame, waits)
        else:
            frames.append(frame)
        _print_notes(task.describe_unseen(askable))
    if out is not None:
        _write(pl.concat(frames), out)
    return every


def _check_items(task: Task, items: list[str], at_once: int) -> Iterator[tuple[list[str], bool]]:
    """Some items at a time: those that can be asked, and whether these are all."""
    lines = _read_items(items)
    while part := list(islice(lines, at_once)):
        few = [text for text, where in part if _check_item(task, text, where)]
        yield few, len(few) == len(part)


def _print_notes(notes: Iterable[str], place: str = "") -> None:
    for note in notes:
        print(f"note: {place}{note}", file=sys.stderr)


def _print_lines(frame: pl.DataFrame, flush: bool = False) -> None:
    for text, answer in frame.rows():
        print(f"{text}\t{answer}", flush=flush)


def _answer_tables(
    task: TableTask[Any, Any], model: nn.Module, files: list[str], out: Path | None
) -> None:
    """Prints the answers to files, or writes them; notes on what was not known go to stderr."""
    import polars as pl

    frames = []
    for file in files:
        frame, notes = task.predict(model, task.table(file))
        frames.append(frame)
        _print_notes(notes, f"{file}: ")
    whole = pl.concat(frames, how="vertical_relaxed")
    if out is None:
        print(whole.write_ndjson(), end="")
    else:
        _write(whole, out)


def _answer_blocks(
    run: Path, task: Task, files: list[str], out: Path | None, address: str | None
) -> bool:
    """As `_answer_tables` and `_answer_lines`, of one large file, block by block on a Ray."""
    from throughtime.train.study.on_ray import answer_on_ray

    if len(files) != 1:
        raise OptionError(f"--on ray takes one file, got {len(files)}; give one at a time")
    whole: list[bool] = []  # of each block of lines
    blocks: Iterable[DataTable | list[str]]
    lines = not isinstance(task, TableTask) or (task.lines and _are_lines(files))
    if lines:
        blocks = _line_blocks(task, files, whole)
    elif isinstance(task, TableTask) and task.together:
        blocks = task.blocks(files[0])
    else:
        raise OptionError(
            f"--on ray takes lines of a .txt, or tables whose series are answered by themselves, "
            f"as of classify and translate, and {run} is one of {task.name}; leave it out"
        )
    answers = answer_on_ray(run, blocks, usable(), address)
    with closing(answers):
        _write_blocks(answers, out, lines)
    return all(whole)


def _line_blocks(task: Task, files: list[str], whole: list[bool]) -> Iterator[list[str]]:
    """What can be asked of the lines of a file; `whole` tells of each block whether that is all."""
    for few, every in _check_items(task, files, _AT_ONCE):
        whole.append(every)
        _print_notes(task.describe_unseen(few))
        if few:
            yield few


def _write_blocks(answers: Iterator[pl.DataFrame], out: Path | None, lines: bool) -> None:
    """Answers as they come, to a file or to standard output."""
    if out is not None and out.suffix == ".parquet":
        _write_parquet(answers, out)
        return
    with open(out, "wb") if out is not None else nullcontext(sys.stdout.buffer) as file:
        for number, frame in enumerate(answers):
            if out is None and lines:
                _print_lines(frame)
            elif out is not None and out.suffix == ".csv":
                frame.write_csv(file, include_header=number == 0)
            else:
                frame.write_ndjson(file)


def _write_parquet(frames: Iterable[pl.DataFrame], out: Path) -> None:
    """Frames one below the other, a group of rows each."""
    from pyarrow.parquet import ParquetWriter

    parts = (frame.to_arrow() for frame in frames)
    if (first := next(parts, None)) is not None:
        with ParquetWriter(out, first.schema) as writer:
            for part in chain([first], parts):
                writer.write_table(part)


def _write(frame: pl.DataFrame, out: Path) -> None:
    """A frame to a file, by the ending of its name."""
    if out.suffix == ".csv":
        frame.write_csv(out)
    elif out.suffix == ".parquet":
        frame.write_parquet(out)
    else:
        frame.write_ndjson(out)


def _check_item(task: Task, text: str, where: str) -> bool:
    """Whether the task takes an item; else says why not."""
    try:
        task.check_item(text)
    except DataError as error:
        print(f"error: {where}{error}", file=sys.stderr)
        return False
    return True


def _read_items(items: Iterable[str]) -> Iterator[Item]:
    for item in items:
        if item == "-":
            yield from _read_lines(sys.stdin.buffer if sys.stdin else (), "standard input")
        elif "/" in item or item.endswith(".txt") or (Path(item).suffix and os.path.exists(item)):
            with open(item, "rb") as file:
                yield from _read_lines(file, item)
        else:
            yield item, ""


def _read_lines(file: Iterable[bytes], name: str) -> Iterator[Item]:
    """The lines that are not empty; bytes that are no text stay to be named."""
    for n, line in enumerate(file, start=1):
        text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
        if text:
            yield text, f"{name}, line {n}: "
