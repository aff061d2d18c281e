"""How a run begins, and how one that was stopped goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import OptionError, RunError, ThroughtimeError
from throughtime.tasks import Task
from throughtime.tasks.recipe import Recipe, one_of, recipe_from
from throughtime.train.run import Run, create, lock, read, replace_recipe
from throughtime.train.storage import MAY_GROW, has_ended, read_checkpoint

RUNS = Path("runs")

_FAILURES = (
    ValueError, TypeError, RuntimeError, ImportError, OSError, MemoryError, KeyboardInterrupt,
)  # fmt: skip
_LIMITS = tuple(
    Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")
)


def resolve(kind: type[Task], given: Mapping[str, Any], processes: int = 1) -> Recipe:
    """The recipe of what was given, then of the preset, then of the defaults.

    Args:
        kind: the task.
        given: fields of its recipe.
        processes: that begin the run.

    Raises:
        OptionError: a value is outside its rule.
        DataError: the task cannot learn from the data.
    """
    kind.refuse_unread(given)
    preset = one_of("preset", str(given.get("preset", "quick")), tuple(kind.presets))
    values = {"task": kind.name, **kind.presets[preset], **given}
    recipe = kind.settle(recipe_from(values, kind.options))
    threads, parts = recipe.threads or torch.get_num_threads(), recipe.parts or processes
    return replace(recipe, threads=threads, parts=parts)


@contextmanager
def begin(
    kind: type[Task], folder: Path | None, given: Mapping[str, Any], processes: int = 1
) -> Iterator[Run]:
    """A new run in `folder`, or in the next free one under runs/; none of what the task refuses.

    What fails inside before anything was learned leaves no folder.

    Raises:
        OptionError: a value is outside its rule, or the model is too large for this machine.
        RunError: the folder cannot be made.
    """
    recipe = resolve(kind, given, processes)
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

    Raises:
        OptionError: it takes more memory than there is.
    """
    needed = 4 * count_parameters(task) * (4 if training else 1) + (
        task.step_bytes() if training else 0
    )
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


def go_on(kind: type[Task], folder: Path | None, given: Mapping[str, Any]) -> Run:
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
    kind.refuse_unread(given)
    changed = {n: v for n, v in given.items() if getattr(run.recipe, n) != v}
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
        return replace_recipe(run, recipe)


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
