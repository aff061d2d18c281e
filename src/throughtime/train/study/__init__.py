"""A study: one memory task learned by many cells from many starts over many lengths, once a seed.

A run trains by the loop of `throughtime train` to its last step, or until a validation at half the
figure at which its task counts as solved; it keeps nothing but its outcome. Runs are done by
worker processes, fresh ones, since a forked one could not compute with several threads. One that
dies costs its run and no other. It ignores Ctrl-C, which is the study's to handle, and ends when
the study's own process does, however that ends.

In place of them `on_ray` does several runs at a time, or each task of a SLURM array does one and
keeps it in the shared folder; the same command without `--on` then goes on where they were.
`folder` keeps and sums up outcomes, `search` draws runs in place of a grid.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import OptionError, RunError
from throughtime.tasks import available, find
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe, short
from throughtime.train.learner import Best, Learner, Watcher, begin_model, train
from throughtime.train.run import check_memory

_MOST_SEEDS = 1000

AXES = ("cell", "start", "length", "seed")
"""Fields of the recipe that differ within a study."""


@dataclass(frozen=True)
class Grid:
    """The values of each axis; a value that occurs twice counts once."""

    cells: Sequence[str]
    starts: Sequence[str]
    lengths: Sequence[int]
    seeds: int

    def recipes(self, shared: Recipe) -> list[Recipe]:
        """All of them, seed by seed, so that what is done first covers the whole grid."""
        axes: list[Sequence[Any]] = [range(self.seeds)]
        axes += (list(dict.fromkeys(v)) for v in (self.lengths, self.cells, self.starts))
        return [
            replace(shared, seed=seed, length=length, cell=cell, start=start)
            for seed, length, cell, start in product(*axes)
        ]


def plan(shared: Recipe, grid: Grid) -> tuple[list[Recipe], list[str]]:
    """The runs that make sense, and a sentence for each cell and start that do not go together.

    Raises:
        OptionError: a value is outside its rule, or nothing is left to run.
    """
    if not 1 <= grid.seeds <= _MOST_SEEDS:
        raise OptionError(
            f"seeds must be a whole number of at least 1 and at most {_MOST_SEEDS}, got "
            f"{short(grid.seeds)}"
        )
    wanted = grid.recipes(shared)
    reasons = {make_run_key(one)[:3]: _why_skipped(one) for one in wanted if one.seed == 0}
    skipped = {f"{cell} from {start}: {why}" for (cell, start, _), why in reasons.items() if why}
    runs = [one for one in wanted if not reasons[make_run_key(one)[:3]]]
    if not runs:
        raise OptionError(f"a study needs a cell and a start that go together; {min(skipped)}")
    return runs, sorted(skipped)


def make_run_key(recipe: Recipe) -> tuple[str, str, int, int]:
    """Cell, start, length and seed: what identifies a run in its study.

    The length is the task's own where the recipe's means nothing to it.
    """
    return recipe.cell, recipe.start, make_memory_task(recipe).steps, recipe.seed


def _why_skipped(recipe: Recipe) -> str:
    """Why a cell has no such start, or nothing; OptionError for a model that is too large."""
    small = make_memory_task(replace(recipe, hidden=2))
    try:
        small.model()
    except OptionError as error:
        return str(error)
    check_memory(make_memory_task(recipe))
    return ""


def make_memory_task(recipe: Recipe) -> MemoryTask:
    """The task of a recipe; OptionError where it is no memory task."""
    kind = find(recipe.task)
    if not issubclass(kind, MemoryTask):
        fit = [name for name, one in available().items() if issubclass(one, MemoryTask)]
        raise OptionError(
            f"a study is of a memory task, {', '.join(fit)}, and {recipe.task} is none"
        )
    return kind(recipe)


_ENOUGH = 0.5  # times the line: a validation this low ends a run


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        cell, start, length, seed: which run; the length in steps.
        threads: how many torch computed with.
        parameters: how many numbers are trained.
        steps: training steps taken.
        seconds: they took, validations aside.
        step_milliseconds: of the processor, all threads; median of a step, to the last validation.
        validations: (step, metric) pairs.
        solved_at_step, solved_at_seconds: of the first validation at the line or below.
        metric: on the test split, with the weights of the best validation.
        solved: both that validation and that metric are at the line or below.
        failed: why it ended before its time, if it did.
    """

    cell: str
    start: str
    length: int
    seed: int
    threads: int
    parameters: int
    steps: int = 0
    seconds: float = 0.0
    step_milliseconds: float = 0.0
    validations: list[tuple[int, float]] = field(default_factory=list)
    solved_at_step: int | None = None
    solved_at_seconds: float | None = None
    metric: float | None = None
    solved: bool = False
    failed: str | None = None


def learn(recipe: Recipe) -> Outcome:
    """Trains one recipe of a memory task; a loss that is not finite is a reason, no error."""
    task = make_memory_task(recipe)
    model = begin_model(task)
    outcome = Outcome(
        cell=recipe.cell, start=recipe.start, length=task.steps, seed=recipe.seed,
        threads=torch.get_num_threads(), parameters=sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    learner, solving = Learner(task, model), Solving(task, outcome)
    try:
        train(learner, [solving])
    except RunError as error:
        outcome.failed = str(error)
        return outcome
    model.load_state_dict(solving.best.weights)
    outcome.metric = learner.score("test")[task.monitor]
    outcome.solved = outcome.solved_at_step is not None and outcome.metric <= task.line()
    return outcome


class Solving(Watcher):
    """Writes down how a run goes, and has had enough when its task is well solved."""

    def __init__(self, task: MemoryTask, outcome: Outcome) -> None:
        self.line, self.monitor, self.outcome = task.line(), task.monitor, outcome
        self.best = Best()
        self._begun, self._times = (0.0, 0.0), list[float]()

    def before_step(self, learner: Learner) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def after_step(self, learner: Learner) -> None:
        wall, processor = self._begun
        self._times.append(time.process_time() - processor)
        self.outcome.seconds += time.perf_counter() - wall
        self.outcome.steps = learner.done

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        """Raises RunError where the figure is not finite."""
        one, metric = self.outcome, metrics[self.monitor]
        one.step_milliseconds = 1000 * statistics.median(self._times)
        learner.check_finite(f"{self.monitor} of the validation", metric)
        one.validations.append((one.steps, metric))
        if one.solved_at_step is None and metric <= self.line:
            one.solved_at_step, one.solved_at_seconds = one.steps, one.seconds
        self.best.see(metric, learner)
        self.enough = metric <= _ENOUGH * self.line


Learn = Callable[[Recipe], Outcome]


@dataclass(frozen=True)
class Lost:
    """A run without an outcome, and why."""

    recipe: Recipe
    reason: str


def run_on_processes(
    recipes: Iterable[Recipe], jobs: int, threads: int, call: Learn = learn
) -> Generator[Outcome | Lost, None, None]:
    """The outcome of each run, in the order in which they end.

    Args:
        recipes: the runs; each is asked for when there is a worker for it.
        jobs: how many at the same time.
        threads: that torch computes with in each.
        call: what a run is; a function of a module, since it goes to other processes.
    """
    waiting, workers = iter(recipes), list[_Worker]()
    try:
        while True:
            free = [one for one in workers if not one.recipe]
            while len(workers) - len(free) < jobs and (recipe := next(waiting, None)):
                worker = free.pop() if free else _Worker(threads, call)
                if worker not in workers:
                    workers.append(worker)
                if not worker.process.is_alive():
                    workers[workers.index(worker)] = worker = _Worker(threads, call)
                worker.begin(recipe)
            busy = {one.connection: one for one in workers if one.recipe}
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                yield busy[connection].end()
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()


class _Worker:
    """A process that does one run after another."""

    def __init__(self, threads: int, call: Learn) -> None:
        fresh = multiprocessing.get_context("spawn")
        self.connection, other = fresh.Pipe()
        self.process = fresh.Process(target=_serve, args=(other, threads, call), daemon=True)
        self.process.start()
        other.close()
        self.recipe: Recipe | None = None

    def begin(self, recipe: Recipe) -> None:
        self.recipe = recipe
        with contextlib.suppress(BrokenPipeError):  # then `end` finds that it died
            self.connection.send(recipe)

    def end(self) -> Outcome | Lost:
        """The outcome of the run; waits for it."""
        recipe, self.recipe = self.recipe, None
        assert recipe is not None
        try:
            outcome: Outcome | Lost = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Lost(recipe, f"its process ended with exit code {self.process.exitcode}")
        return outcome


def _serve(connection: Connection, threads: int, call: Learn) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        recipe = connection.recv()
        try:
            connection.send(call(recipe))
        except (RuntimeError, MemoryError) as error:  # of torch: out of memory, say
            connection.send(Lost(recipe, f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_LARGEST = 1000  # number of a task that every SLURM takes


def write_script(
    words: Sequence[str], runs: Sequence[int], jobs: int, threads: int, folder: Path
) -> str:
    """The script that `sbatch` takes; OptionError where the grid has more runs than an array.

    Args:
        words: of the study's command line, without where it runs.
        runs: the numbers of the grid's runs that have no file yet.
        jobs: how many tasks at the same time, of so many threads.
        folder: of the study, which all machines share.
    """
    if max(runs) > _LARGEST:
        raise OptionError(
            f"an array's tasks have numbers of at most {_LARGEST}, and the grid has "
            f"{max(runs) + 1} runs; give fewer --cells, --init, --length or --seeds at a time"
        )
    command = shlex.join([sys.executable, "-c", _PROGRAM, *words])
    return f"""#!/bin/bash
#SBATCH --job-name=throughtime-study
#SBATCH --array={_format_spans(runs)}%{jobs}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --output={shlex.quote(str(folder.resolve() / "slurm-%a.log"))}
cd {shlex.quote(str(Path.cwd()))}
exec {command} --run $SLURM_ARRAY_TASK_ID
"""


_PROGRAM = "import sys; from throughtime import cli; sys.exit(cli.main())"


def _format_spans(numbers: Sequence[int]) -> str:
    """Numbers as an array has them: `0-3,7`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def submit(script: str) -> str:
    """Hands the script to SLURM, where it is and takes it; its answer has the number of the job."""
    if shutil.which("sbatch") is None:
        raise RunError(
            "SLURM's sbatch must be there to take a study, and this machine has none; print the "
            "script with --dry-run and hand it in where it is"
        )
    done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"SLURM must take the study, and it refuses: {done.stderr.strip()}")
    return done.stdout.strip()
