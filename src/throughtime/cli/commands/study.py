"""`throughtime study`: which cell, from which start, remembers how long, and at what cost."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from throughtime.cli.options import add_recipe_flags, given_values, whole_number
from throughtime.tasks.recipe import Recipe, from_text

if TYPE_CHECKING:
    from rich.console import Console

    from throughtime.cli.app import Commands
    from throughtime.train.study.folder import Folder, StudyRow
    from throughtime.train.study.learn import Outcome
    from throughtime.train.study.workers import Lost


# Fields that are axes of the grid, or that mean nothing to a memory task or to a study.
_NO_FLAG = (
    "task", "cell", "start", "length", "seed", "threads",
    "directions", "merge", "dropout", "smoothing", "patience", "checkpoint_every", "log_every",
)  # fmt: skip
_FIELDS = {f.name: f for f in fields(Recipe)}
_CELLS, _STARTS = (_FIELDS[name].metadata["choices"] for name in ("cell", "start"))


def register(commands: Commands) -> None:
    """Adds the command."""
    from throughtime.tasks import available
    from throughtime.tasks.memory import MemoryTask

    kinds = {name: kind for name, kind in available().items() if issubclass(kind, MemoryTask)}
    parser = commands.add("study", study)
    parser.usage = "throughtime study --task TASK [options]"
    parser.add_argument("--task", required=True, metavar="TASK", help="One of those below.")
    for names, values in ((("--cells",), _CELLS), (("--init", "--start"), _STARTS)):
        text = f"Some of {', '.join(values)}. Default: all."
        parser.add_argument(*names, nargs="+", action="extend", metavar="NAME", help=text)
    parser.add_argument(
        "--length", nargs="+", action="extend", metavar="INT",
        help="Steps of the sequences. Default: 100.",
    )  # fmt: skip
    parser.add_argument(
        "--seeds",
        type=whole_number,
        metavar="INT",
        default=5,
        help="How many: 0, 1, ... Default: 5.",
    )
    parser.add_argument(
        "--jobs", type=whole_number, metavar="INT", default=0,
        help="Runs at the same time. Default: as many as there are cores.",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="The study's folder. Default: runs/study-TASK."
    )
    add_recipe_flags(parser, commands, kinds, without=_NO_FLAG)


def study(
    task: str, cells: list[str] | None, init: list[str] | None, length: list[str] | None,
    seeds: int, jobs: int, out: Path | None, **flags: str | None,
) -> None:  # fmt: skip
    """Compare cells and starts on one memory task. The same command again goes on where it was."""
    from rich.console import Console  # before there is a folder

    from throughtime.errors import OptionError
    from throughtime.tasks import find
    from throughtime.train.begin import RUNS, resolve
    from throughtime.train.run import locked
    from throughtime.train.study.folder import Folder
    from throughtime.train.study.grid import Grid, plan

    if jobs < 0:
        raise OptionError(f"jobs must be a whole number of at least 0, got {jobs}")
    shared = resolve(find(task), given_values(flags))
    axes = {"cell": cells or _CELLS, "start": init or _STARTS, "length": length or ["100"]}
    named = {axis: [from_text(_FIELDS[axis], one) for one in texts] for axis, texts in axes.items()}
    grid = Grid(named["cell"], named["start"], named["length"], seeds)
    recipes, skipped = plan(shared, grid)
    folder = Folder(out or RUNS / f"study-{task}", shared)
    with locked(folder.path):
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        lost = _run(folder, recipes, jobs or _cores(), console)
        _report(folder, shared, skipped, lost)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # on macOS and Windows


def _run(folder: Folder, recipes: list[Recipe], jobs: int, console: Console) -> list[Lost]:
    """Has the missing runs done and keeps each; returns those without an outcome."""
    from rich.progress import track

    from throughtime.train.study.grid import key
    from throughtime.train.study.workers import Lost, over_processes

    done = {(one.cell, one.start, one.length, one.seed) for one in folder.outcomes()}
    missing = [one for one in recipes if key(one) not in done]
    lost: list[Lost] = []
    console.print(f"{len(recipes)} runs, {len(recipes) - len(missing)} of them done before")
    total, hidden = len(missing), not console.is_terminal
    with closing(over_processes(missing, jobs, max(1, _cores() // jobs))) as ended:
        try:
            for one in track(ended, "runs", total, console=console, disable=hidden):
                if isinstance(one, Lost):
                    lost.append(one)
                else:
                    folder.keep(one)
                console.print(_lost(one) if isinstance(one, Lost) else _told(one))
        except KeyboardInterrupt:
            console.print("stopped; what ended is kept, and the same command goes on")
            raise
    return lost


def _told(one: Outcome) -> str:
    said = one.failed or f"{'solved' if one.solved else 'not solved'}, {one.metric:.3g}"
    return (
        f"{one.cell} from {one.start} over {one.length}, seed {one.seed}: {said}, "
        f"{one.steps} steps, {one.seconds:.1f} s"
    )


def _lost(one: Lost) -> str:
    recipe = one.recipe
    return (
        f"{recipe.cell} from {recipe.start} over {recipe.length}, seed {recipe.seed} has no "
        f"outcome: {one.reason}; the same command tries it again"
    )


def _report(folder: Folder, shared: Recipe, skipped: list[str], lost: list[Lost]) -> None:
    """Writes and prints what all runs of the folder came to."""
    import torch

    from throughtime import __version__
    from throughtime.train.study.folder import page, rows
    from throughtime.train.study.grid import memory_task

    outcomes = folder.outcomes()
    table, rule = rows(outcomes), memory_task(shared).rule
    left_out = [f"left out: {one}" for one in skipped]
    machine = f"throughtime {__version__}, torch {torch.__version__}, {_cores()} cores"
    options = [f"{n} {getattr(shared, n)}" for n in _FIELDS if n not in _NO_FLAG]
    remarks = [*map(_lost, lost), *left_out, rule, f"every run: {', '.join(options)}", machine]
    said = {"rule": rule, "machine": machine, "skipped": skipped, "lost": [*map(_lost, lost)]}
    runs = {"table": [asdict(row) for row in table], "outcomes": [asdict(o) for o in outcomes]}
    folder.report(said | runs, page(f"Study of {shared.task}", table, remarks))
    _show(table, remarks)
    print(f"report: {folder.path / 'study.md'}, and with every run study.json")


def _show(table: list[StudyRow], remarks: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from throughtime.train.study.folder import HEADINGS, failures, reach

    console = Console(highlight=False, soft_wrap=True)
    console.print("\nthe longest length, in steps, that most seeds solved")
    for headings, lines in (reach(table), (HEADINGS, [row.cells() for row in table])):
        shown = Table(*headings, box=None, pad_edge=False)
        for line in lines:
            shown.add_row(*line)
        console.print(shown, "")
    for remark in [*failures(table), *remarks]:
        console.print(remark)
