"""A run folder: how a run begins in it, is read back, and goes on when it was stopped.

config.json          the recipe
metrics.jsonl        a row every few steps and every validation
log.txt              the same for people
checkpoint.pt        where to go on, sealed; the one before it as checkpoint-previous.pt
weights.safetensors  the best weights, when training has ended
results.json         the figures on held-out items, when training has ended
report.json          how far back the model learned, and report.html the same as a page
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import DataError, OptionError, RunError, ThroughtimeError
from throughtime.tasks import Task, available, find
from throughtime.tasks.recipe import FileRecipe, Recipe, one_of, recipe_from, short
from throughtime.tasks.tables.read import list_files
from throughtime.tasks.tables.task import BUILTIN
from throughtime.train.storage import MAY_GROW, has_ended, read_checkpoint, read_json, write_json


class RunFile:
    """The path of one of a run's files."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run, _: object) -> Path:
        return run.folder / self.name


@dataclass(frozen=True)
class Run:
    """A run folder that exists, with the recipe in it."""

    folder: Path
    recipe: Recipe

    metrics, log, results = RunFile("metrics.jsonl"), RunFile("log.txt"), RunFile("results.json")
    checkpoint, previous = RunFile("checkpoint.pt"), RunFile("checkpoint-previous.pt")
    weights = RunFile("weights.safetensors")

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return (
            f"throughtime train {self.recipe.task} --resume --out {shlex.quote(str(self.folder))}"
        )

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Keeps the figures of a finished run."""
        write_json(self.results, results)


def create(folder: Path, recipe: Recipe) -> Run:
    """Makes a run folder: complete with its recipe, or not at all.

    Raises:
        RunError: something is there already, or the folder cannot be written.
    """
    exists = folder.exists() or folder.is_symlink()
    if exists and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(
            f"a new run needs a folder that is not there yet or empty, and {folder} is neither; "
            "go on with what is there with --resume, or name another folder with --out"
        )
    draft = folder if exists else folder.with_name(f".{folder.name[:40]}.draft-{os.getpid()}")
    try:
        if not exists:
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
        write_json(draft / "config.json", asdict(recipe))
        if not exists:
            draft.rename(folder)
    except OSError as error:
        if not exists:
            shutil.rmtree(draft, ignore_errors=True)
        raise RunError(
            f"the run folder {folder} must be writable, and it is not ({error.strerror}); "
            "name another folder with --out"
        ) from error
    return Run(folder, recipe)


def read(folder: Path) -> Run:
    """Opens a run folder.

    Raises:
        RunError: there is none, or its config.json is missing, damaged or outside the rules.
    """
    path = folder / "config.json"
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"it holds no object but {short(values)}")
        kind = _find_options(values)
        recipe = recipe_from(values, kind)
        missing = [f.name for f in fields(kind) if f.name not in values]
        if missing:
            raise ValueError(f"it does not say {', '.join(missing)}")
        find(recipe.task)(recipe)
    except OSError as error:
        raise RunError(
            f"a run is a folder with a config.json, and {path} cannot be read ({error.strerror}); "
            "name the folder that `throughtime train` printed"
        ) from error
    except ValueError as error:
        raise RunError(
            f"{path} must be what this version of throughtime writes, and {error}; restore the "
            "file, or train again in another folder"
        ) from error
    return Run(folder, _find_files(recipe, folder))


def _find_files(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its files as they are seen from here.

    One named by a relative path that leads nowhere is looked for from the folders above the run's,
    in one of which training was mostly called.
    """
    found: dict[str, Any] = {}
    for name in ("data", "test") if isinstance(recipe, FileRecipe) else ():
        named = str(getattr(recipe, name, ""))
        if named in ("", BUILTIN) or _is_there(named):
            continue
        files = [file.strip() for file in named.split(",")]
        for above in reversed(folder.resolve().parents):  # the nearest has the last word
            for place in (",".join(str(above / file) for file in files), str(above / named)):
                if _is_there(place):
                    found[name] = place
    return replace(recipe, **found)


def _is_there(named: str) -> bool:
    try:
        return all(Path(file).is_file() for file in list_files(named))
    except DataError:  # none that matches
        return False


def _find_options(values: Mapping[str, Any]) -> type[Recipe]:
    """The kind of recipe that values are of: the task's, where they name one."""
    task = values.get("task")
    return available()[task].options if task in tuple(available()) else Recipe


def _lock(handle: int) -> None:
    """Raises: BlockingIOError: another process holds the file."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a run folder for one process; a killed process lets go by itself.

    Raises:
        RunError: another process trains there, or the folder cannot be written.
    """
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(
            f"the run folder {folder} must be writable, and it is not ({error.strerror}); "
            "copy it to a place that is and resume there"
        ) from error
    try:
        _lock(handle)
        yield
    except BlockingIOError as error:
        raise RunError(
            f"one process at a time trains in a folder, and another one does in {folder}; "
            "wait for it, or name another folder with --out"
        ) from error
    finally:
        os.close(handle)


RUNS = Path("runs")

_FAILURES = (
    ValueError, TypeError, RuntimeError, ImportError, OSError, MemoryError, KeyboardInterrupt,
)  # fmt: skip
_LIMITS = tuple(
    Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")
)


def resolve(kind: type[Task], options: Mapping[str, Any], processes: int = 1) -> Recipe:
    """The recipe of some options, then of the preset, then of the defaults.

    Raises:
        OptionError, DataError: a value is outside its rule, or the task cannot learn from the data.
    """
    kind.refuse_unread(options)
    preset = one_of("preset", str(options.get("preset", "quick")), tuple(kind.presets))
    values = {"task": kind.name, **kind.presets[preset], **options}
    recipe = kind.settle(recipe_from(values, kind.options))
    threads, parts = recipe.threads or torch.get_num_threads(), recipe.parts or processes
    return replace(recipe, threads=threads, parts=parts)


@contextmanager
def begin(
    kind: type[Task], folder: Path | None, options: Mapping[str, Any], processes: int = 1
) -> Iterator[Run]:
    """A new run in `folder`, or in the next free one under runs/; none of what the task refuses.

    What fails inside before anything was learned leaves no folder.

    Raises:
        OptionError: a value is outside its rule, or the model is too large for this machine.
        RunError: the folder cannot be made.
    """
    recipe = resolve(kind, options, processes)
    check_memory(kind(recipe))
    top = folder or RUNS
    made = [path for path in (top, *top.parents) if not path.exists()]
    try:
        run = _create(folder, recipe)
        with _remove_if_unused(run, folder is None):
            yield run
    except _FAILURES:
        for path in made:
            with suppress(OSError):  # it was not made, or there is something in it
                path.rmdir()
        raise


def _create(folder: Path | None, recipe: Recipe) -> Run:
    """The run in a folder, or in the next free one, whatever other processes take meanwhile."""
    while folder is None:
        place = _next_free(recipe.task)
        try:
            return create(place, recipe)
        except RunError:
            if not place.exists():
                raise
    return create(folder, recipe)


@contextmanager
def _remove_if_unused(run: Run, with_folder: bool) -> Iterator[None]:
    """Deletes what was made of a new run when it fails before there is anything to go on from."""
    try:
        yield
    except _FAILURES as error:
        rows = run.metrics.exists() and run.metrics.stat().st_size
        resumable = isinstance(error, KeyboardInterrupt) and run.log.exists()  # how to go on
        if not rows and not resumable and not run.checkpoint.exists():
            for file in (run.folder / "config.json", run.folder / "lock", run.log, run.metrics):
                file.unlink(missing_ok=True)
            with suppress(OSError):
                if with_folder:
                    run.folder.rmdir()
        raise


def check_memory(task: Task, training: bool = True) -> None:
    """Refuses a model that this machine cannot hold: sizes are a slip of the finger away.

    Training holds each parameter four times, with its gradient and the optimizer's two.
    """
    needed = 4 * count_parameters(task)
    if training:
        needed = 4 * needed + task.step_bytes()
    available = _memory_bytes()
    if needed > available:
        names = [n for n in ("hidden", "batch_size", "length") if n not in task.ignores]
        raise OptionError(
            f"a {'training' if training else 'model'} must fit into this machine's "
            f"{available / 2**30:,.1f} GiB of memory, and it needs at least "
            f"{needed / 2**30:,.1f} with "
            f"{', '.join(f'{n} {getattr(task.recipe, n)}' for n in names)}; make them smaller"
        )


def count_parameters(task: Task) -> int:
    """How many numbers its model has, without making it.

    They are counted in three small models of its kind, for they grow with the square of `hidden`:
    at 2, 4, 6 units a, b, c, and at 2 + 2 n units a + n (b - a) + n (n - 1) / 2 (c - 2 b + a).
    """
    with torch.random.fork_rng(devices=[]):
        kinds = [type(task)(replace(task.recipe, hidden=units)) for units in (2, 4, 6)]
        try:
            a, b, c = (_count_parameters(kind) for kind in kinds)
        except ThroughtimeError:  # a cell that has no such sizes, of four heads say
            return _count_parameters(task)
    n = (task.recipe.hidden - 1) // 2
    return a + n * (b - a) + n * (n - 1) // 2 * (c - 2 * b + a)


def _count_parameters(task: Task) -> int:
    return sum(p.numel() for p in task.model().parameters())


def _memory_bytes() -> int:
    """What there is for this process: of the machine, or of the container it runs in."""
    sizes = [2**63]
    if hasattr(os, "sysconf"):  # which Windows has not
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # no such limit here, or `max`
            sizes.append(int(limit.read_text()))
    return min(sizes)


def go_on(kind: type[Task], folder: Path | None, options: Mapping[str, Any]) -> Run:
    """The run in `folder`, or the newest of the task, with the recipe it began with.

    More steps, patience or parts than it began with are taken, and kept in its config.json.

    Raises:
        RunError: there is none.
        OptionError: an option was given that differs from the run's.
    """
    run = read(folder or _newest(kind.name))
    if run.recipe.task != kind.name:
        raise RunError(
            f"{run.folder} must be a run of {kind.name}, and it is one of {run.recipe.task}; "
            f"resume it with: {run.resume}"
        )
    kind.refuse_unread(options)
    changed = {n: v for n, v in options.items() if getattr(run.recipe, n) != v}
    recipe = replace(run.recipe, **changed)
    for name, value in changed.items():
        old, option = getattr(run.recipe, name), f"--{name.replace('_', '-')}"
        if name not in MAY_GROW:
            raise OptionError(
                f"a resumed run keeps its options, and {option} is {old!r} in {run.folder}, got "
                f"{value!r}; leave it out, or begin a new run without --resume"
            )
        if value < old:
            raise OptionError(
                f"a resumed run may get a larger {option}, not a smaller one, and it is {old} in "
                f"{run.folder}, got {value}; leave it out, or begin a new run without --resume"
            )
    return _extend(run, recipe) if changed else run


def _extend(run: Run, recipe: Recipe) -> Run:
    """The run with more steps, patience or parts, when more of it follows."""
    with lock(run.folder):
        state = read_checkpoint(run)
        if state is not None and state["finished"] is True and has_ended(recipe, state):
            if recipe == replace(run.recipe, parts=recipe.parts):
                return run
            raise OptionError(
                f"{run.folder} stopped at step {state['step']} of {run.recipe.steps}, since "
                f"{run.recipe.patience} validations in a row brought no progress, and more steps "
                "change nothing about that; give it a larger --patience too"
            )
        write_json(run.folder / "config.json", asdict(recipe))
        return Run(run.folder, recipe)


def _list_runs(task: str) -> dict[int, Path]:
    folders = {path.name.removeprefix(f"{task}-"): path for path in RUNS.glob(f"{task}-*")}
    return {int(number): path for number, path in folders.items() if number.isdecimal()}


def _next_free(task: str) -> Path:
    return RUNS / f"{task}-{max(_list_runs(task), default=0) + 1}"


def _newest(task: str) -> Path:
    runs = _list_runs(task)
    if not runs:
        raise RunError(
            f"--resume goes on with a run, and {RUNS}/ has none of {task}; "
            "name its folder with --out, or begin one without --resume"
        )
    return runs[max(runs)]
