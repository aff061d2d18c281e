"""One run of a study: trained until it solves its task, or to its last step.

It trains as `throughtime train` does with the same recipe, to the same bits; only it ends earlier,
at a validation of half the line from which a task counts as solved.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from throughtime.errors import RunError
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe
from throughtime.train.step import StepLoader, clip, learning_rate, optimizer, step_seed
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
    torch.manual_seed(step_seed(recipe.seed, -1))
    model = task.model()
    outcome = Outcome(
        cell=recipe.cell, start=recipe.start, length=task.steps, seed=recipe.seed,
        threads=torch.get_num_threads(), parameters=sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    try:
        best = _train(task, model, outcome)
    except RunError as error:
        outcome.failed = str(error)
        return outcome
    model.load_state_dict(best)
    outcome.metric = _metric(task, model, "test")
    outcome.solved = outcome.solved_at_step is not None and outcome.metric <= task.line()
    return outcome


def _train(task: MemoryTask, model: nn.Module, outcome: Outcome) -> dict[str, torch.Tensor]:
    """Trains, writes into the outcome, and returns the weights of the best validation."""
    recipe, batches, times = task.recipe, StepLoader(task, lambda: 0), []
    rule, best, lowest = optimizer(recipe, model.parameters()), model.state_dict(), math.inf
    for step in range(recipe.steps):
        begun, processor = time.perf_counter(), time.process_time()
        _step(task, model, rule, batches, step)
        times.append(time.process_time() - processor)
        outcome.steps = step + 1
        outcome.seconds += time.perf_counter() - begun
        if outcome.steps % recipe.validate_every and outcome.steps < recipe.steps:
            continue
        outcome.step_milliseconds = 1000 * statistics.median(times)
        metric = _validate(task, model, outcome)
        if metric < lowest:
            best, lowest = copy.deepcopy(model.state_dict()), metric
        if metric <= _ENOUGH * task.line():
            break
    return best


def _step(
    task: MemoryTask, model: nn.Module, rule: torch.optim.Optimizer, batches: StepLoader, step: int
) -> None:
    torch.manual_seed(step_seed(task.recipe.seed, step))
    for group in rule.param_groups:
        group["lr"] = learning_rate(task.recipe, step)
    loss = task.loss(model, batches.batch(step))
    _check_finite("loss", float(loss.detach()), step)
    rule.zero_grad()
    loss.backward()
    norm, _ = clip(task.recipe, model.parameters())
    _check_finite("norm of the gradient", norm, step)
    rule.step()


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise RunError(f"the {what} became {value} at step {step}")


def _validate(task: MemoryTask, model: nn.Module, outcome: Outcome) -> float:
    metric = _metric(task, model, "validation")
    _check_finite(f"{task.monitor} of the validation", metric, outcome.steps)
    outcome.validations.append((outcome.steps, metric))
    if outcome.solved_at_step is None and metric <= task.line():
        outcome.solved_at_step, outcome.solved_at_seconds = outcome.steps, outcome.seconds
    return metric


def _metric(task: MemoryTask, model: nn.Module, split: str) -> float:
    metric = task.score(model.eval(), split).metrics[task.monitor]
    model.train()
    return metric
