"""A study: one memory task learned by many cells from many starts over many lengths, once a seed.

A run trains by the loop of `throughtime train` to its last step, or until a validation at half the
figure at which its task counts as solved; it keeps nothing but its outcome. `executors` and
`on_ray` do several runs at a time, `folder` keeps and sums up their outcomes, `search` draws runs
in place of a grid.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
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
    reasons = {run_key(one)[:3]: _why_skipped(one) for one in wanted if one.seed == 0}
    skipped = {f"{cell} from {start}: {why}" for (cell, start, _), why in reasons.items() if why}
    runs = [one for one in wanted if not reasons[run_key(one)[:3]]]
    if not runs:
        raise OptionError(f"a study needs a cell and a start that go together; {min(skipped)}")
    return runs, sorted(skipped)


def run_key(recipe: Recipe) -> tuple[str, str, int, int]:
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
