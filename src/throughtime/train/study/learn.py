"""One run of a study: trained until it solves its task, or to its last step.

The loop is that of `throughtime train`; only it ends earlier, at a validation of half the line from
which a task counts as solved, and keeps nothing but what it came to.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from throughtime.errors import RunError
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe
from throughtime.train.learner import Best, Learner, Watcher
from throughtime.train.loop import begin_model, train
from throughtime.train.study.grid import memory_task

_ENOUGH = 0.5  # times the line: a validation this low ends a run


@dataclass(kw_only=True)
class Outcome:
    """What a run came to.

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
    task = memory_task(recipe)
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
