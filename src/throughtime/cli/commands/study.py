"""`throughtime study`: which cell, from which start, remembers how long, and at what cost."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from throughtime import __version__, train
from throughtime.cli import add_recipe_flags, parse_flags, read_whole_number
from throughtime.cli.shown import open_console, show_table
from throughtime.compiler.runtime.threads import usable
from throughtime.errors import OptionError, missing_extra
from throughtime.tasks import available, find
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe, parse_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from throughtime.cli import Commands, Parser
    from throughtime.train.study import Grid, Lost, Outcome
    from throughtime.train.study.folder import Folder, StudyRow


# Fields that are axes of the grid, or that mean nothing to a memory task or to a study.
_NO_FLAG = (
    "task", "cell", "start", "length", "seed", "threads", "parts",
    "directions", "merge", "dropout", "smoothing", "patience", "checkpoint_every", "log_every",
)  # fmt: skip
_FIELDS = {f.name: f for f in fields(Recipe)}
_CELLS, _STARTS = (_FIELDS[name].metadata["choices"] for name in ("cell", "start"))


def register(commands: Commands) -> None:
    """Adds the command."""
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
    parser.add_number("--seeds", 5, "How many: 0, 1, ... Default: 5.")
    parser.add_number("--jobs", 0, "Runs at the same time. Default: as many as there are cores.")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="The study's folder. Default: runs/study-TASK, or runs/search-TASK.",
    )  # fmt: skip
    _add_scale_flags(parser)
    add_recipe_flags(parser, commands, kinds, without=_NO_FLAG)
    parser.set_defaults(words=("study", *commands.words))


def _add_scale_flags(parser: Parser) -> None:
    """Where runs are done, and which."""
    parser.add_argument(
        "--on", choices=("local", "ray", "slurm"), default="local",
        help="Who does the runs: processes here, Ray, or an array of SLURM. Default: local.",
    )  # fmt: skip
    parser.add_argument("--address", metavar="HOST:PORT", help="Of a Ray. Default: one made here.")
    parser.add_argument(
        "--dry-run", action="store_true", help="With --on slurm: print the script, hand in nothing."
    )
    parser.add_argument(
        "--search", metavar="random|tpe",
        help="Draw cell, start, lr and hidden in place of a grid; needs Optuna.",
    )  # fmt: skip
    parser.add_number("--trials", 50, "Of a search. Default: 50.")
    parser.add_argument("--run", type=read_whole_number, help=argparse.SUPPRESS)  # one of the grid


def study(
    task: str, cells: list[str] | None, init: list[str] | None, length: list[str] | None,
    seeds: int, jobs: int, out: Path | None, on: str, address: str | None, dry_run: bool,
    search: str | None, trials: int, run: int | None, words: tuple[str, ...], **flags: str | None,
) -> None:  # fmt: skip
    """Compare cells and starts on one memory task. The same command again goes on where it was."""
    import rich  # noqa: F401  # before there is a folder

    from throughtime.train.run import RUNS, lock, resolve
    from throughtime.train.study.folder import Folder

    where = Where(on, jobs, address)
    where.check(dry_run, search)
    shared = resolve(find(task), parse_flags(flags))
    recipes, skipped = train.study.plan(shared, _grid(cells, init, length, 1 if search else seeds))
    folder = Folder(out or RUNS / f"{'search' if search else 'study'}-{task}", shared)
    if run is not None:
        _do_one(folder, recipes, run)
        return
    with lock(folder.path):
        if search:
            _search(folder, shared, recipes, search, trials, where)
        elif on == "slurm":
            _hand_in(folder, recipes, words, where.jobs, dry_run)
        else:
            missing, total = _find_missing(folder, recipes), len(recipes)
            lost = where.run(folder, missing, total, total - len(missing))
            _report(folder, shared, skipped, lost)


def _grid(
    cells: list[str] | None, init: list[str] | None, length: list[str] | None, seeds: int
) -> Grid:
    """The values of each axis, as they were typed."""
    axes = {"cell": cells or _CELLS, "start": init or _STARTS, "length": length or ["100"]}
    named = {
        axis: [parse_option(_FIELDS[axis], one) for one in texts] for axis, texts in axes.items()
    }
    return train.study.Grid(named["cell"], named["start"], named["length"], seeds)


@dataclass(frozen=True)
class Where:
    """Who does the runs, how many at the same time; jobs 0: as many as there are cores."""

    on: str
    jobs: int
    address: str | None

    def check(self, dry_run: bool, search: str | None) -> None:
        """Raises OptionError where options do not go together, MissingExtra where they need it."""
        if self.jobs < 0:
            raise OptionError(f"jobs must be a whole number of at least 0, got {self.jobs}")
        if self.address is not None and self.on != "ray":
            raise OptionError(f"address is a Ray's, got {self.address!r} with --on {self.on}")
        if dry_run and self.on != "slurm":
            raise OptionError(
                f"dry-run prints a script for SLURM; leave it out with --on {self.on}"
            )
        if search and self.on == "slurm":
            raise OptionError("a search goes by what came before; do it with --on local or ray")
        for package, needed in (("ray", self.on == "ray"), ("optuna", search is not None)):
            if needed and find_spec(package) is None:
                raise missing_extra(package, "cluster")  # before there is a folder

    def begin(self, recipes: Iterable[Recipe]) -> Generator[Outcome | Lost, None, None]:
        """The runs, as they end."""
        jobs = self.jobs or usable()
        threads = max(1, usable() // jobs)
        if self.on == "ray":
            from throughtime.train.study.on_ray import run_on_ray

            return run_on_ray(recipes, jobs, threads, self.address)
        return train.study.run_on_processes(recipes, jobs, threads)

    def run(
        self, folder: Folder, recipes: Iterable[Recipe], total: int, done: int,
        tell: Callable[[Outcome], None] = lambda one: None,
    ) -> list[Lost]:  # fmt: skip
        """Has runs done, keeps and shows each; returns those without an outcome."""
        console = open_console(stderr=True)
        console.print(f"{total} runs, {done} of them done before")
        lost: list[Lost] = []
        with closing(self.begin(recipes)) as ended, _make_bar(console) as bar:
            row = bar.add_task("runs", total=total, completed=done, best=_describe_best(folder))
            try:
                for one in ended:
                    if isinstance(one, train.study.Lost):
                        lost.append(one)
                        console.print(_describe_lost(one))
                    else:
                        folder.keep(one)
                        tell(one)
                        console.print(_describe_outcome(one))
                    bar.update(row, advance=1, best=_describe_best(folder))
            except KeyboardInterrupt:
                console.print("stopped; what ended is kept, and the same command goes on")
                raise
        return lost


def _make_bar(console: Console) -> Progress:
    """How many runs have ended, the time left, and the best so far."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left(),
               TextColumn("{task.fields[best]}"))  # fmt: skip
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _describe_best(folder: Folder) -> str:
    """The run with the lowest figure, in words."""
    ended = [one for one in folder.outcomes() if one.metric is not None]
    if not ended:
        return ""
    one = min(ended, key=lambda one: one.metric or 0.0)
    return f"best {one.metric:.3g}, {one.cell} from {one.start} over {one.length}"


def _find_missing(folder: Folder, recipes: list[Recipe]) -> list[Recipe]:
    """The runs that have no file yet."""
    done = {(one.cell, one.start, one.length, one.seed) for one in folder.outcomes()}
    return [one for one in recipes if train.study.make_run_key(one) not in done]


def _do_one(folder: Folder, recipes: list[Recipe], number: int) -> None:
    """One run of the grid, as a task of an array does it."""
    if not 0 <= number < len(recipes):
        raise OptionError(f"the grid has runs 0 to {len(recipes) - 1}, got {number}")
    if _find_missing(folder, [recipes[number]]):
        torch.set_num_threads(1)
        one = train.study.learn(recipes[number])
        folder.keep(one)
        print(_describe_outcome(one))


def _hand_in(
    folder: Folder, recipes: list[Recipe], words: tuple[str, ...], jobs: int, dry_run: bool
) -> None:
    """Hands the missing runs to SLURM, or prints the script."""
    missing = _find_missing(folder, recipes)
    if not missing:
        print("every run is done; the same command without --on slurm reports")
        return
    numbers = [n for n, one in enumerate(recipes) if one in missing]
    again = [w for n, w in enumerate(words) if w != "--dry-run" and not _belongs_to_on(words, n)]
    again += [] if "--out" in " ".join(words) else ["--out", str(folder.path)]
    script = train.study.write_script(again, numbers, jobs or len(numbers), 1, folder.path)
    print(script if dry_run else train.study.submit(script))


def _belongs_to_on(words: tuple[str, ...], place: int) -> bool:
    """Whether a word belongs to `--on slurm`."""
    return words[place].partition("=")[0] == "--on" or (place > 0 and words[place - 1] == "--on")


def _search(
    folder: Folder, shared: Recipe, recipes: list[Recipe], kind: str, trials: int, where: Where
) -> None:
    """Does the trials of a search, and reports."""
    from throughtime.train.study.folder import Search

    if len({one.length for one in recipes}) > 1:
        raise OptionError("a search is over one length; give one --length")
    pairs = list(dict.fromkeys((one.cell, one.start) for one in recipes))
    search = Search(kind, folder, replace(shared, length=recipes[0].length), pairs, trials)
    lost = where.run(folder, search.recipes(), *search.count(), search.tell)
    best = search.best()
    outcomes = [asdict(one) for one in folder.outcomes()]
    words = [*map(_describe_lost, lost)]
    folder.report({"search": kind, "best": best, "outcomes": outcomes, "lost": words}, "")
    trials_drawn = [(str(one["trial"]), f"{one['figure']:.4g}", one["model"], f"{one['lr']:.3g}",
             str(one["hidden"])) for one in best]  # fmt: skip
    show_table(trials_drawn, "trial", "validation", "cell and start", "lr", "hidden")
    print(f"report: {folder.path / 'study.json'}")


def _describe_outcome(one: Outcome) -> str:
    result = one.failed or f"{'solved' if one.solved else 'not solved'}, {one.metric:.3g}"
    return (
        f"{one.cell} from {one.start} over {one.length}, seed {one.seed}: {result}, "
        f"{one.steps} steps, {one.seconds:.1f} s"
    )


def _describe_lost(one: Lost) -> str:
    recipe = one.recipe
    return (
        f"{recipe.cell} from {recipe.start} over {recipe.length}, seed {recipe.seed} has no "
        f"outcome: {one.reason}; the same command tries it again"
    )


def _report(folder: Folder, shared: Recipe, skipped: list[str], lost: list[Lost]) -> None:
    """Writes and prints the outcomes of all runs of the folder."""
    from throughtime.train.study.folder import make_page, make_rows

    outcomes = folder.outcomes()
    table, rule = make_rows(outcomes), train.study.make_memory_task(shared).rule
    left_out = [f"left out: {one}" for one in skipped]
    machine = f"throughtime {__version__}, torch {torch.__version__}, {usable()} cores"
    options = [f"{n} {getattr(shared, n)}" for n in _FIELDS if n not in _NO_FLAG]
    words = [*map(_describe_lost, lost)]
    remarks = [*words, *left_out, rule, f"every run: {', '.join(options)}", machine]
    texts = {"rule": rule, "machine": machine, "skipped": skipped, "lost": words}
    runs = {"table": [asdict(row) for row in table], "outcomes": [asdict(o) for o in outcomes]}
    folder.report(texts | runs, make_page(f"Study of {shared.task}", table, remarks))
    _show(table, remarks)
    print(f"report: {folder.path / 'study.md'}, and with every run study.json")


def _show(table: list[StudyRow], remarks: list[str]) -> None:
    from throughtime.train.study.folder import HEADINGS, find_longest_solved, list_failures

    print("\nthe longest length, in steps, that most seeds solved")
    for headings, lines in (find_longest_solved(table), (HEADINGS, [row.cells() for row in table])):
        show_table(lines, *headings)
        print()
    print("\n".join([*list_failures(table), *remarks]))
