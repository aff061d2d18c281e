"""One training: a case and a seed to an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from throughtime.tasks import find
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe

EVERY = 50  # steps between scores
SETTLED = 100  # the step after which clipped ones are counted


class Case(NamedTuple):
    """What one row trains; everything but cell, start, lr, horizon and clip is shared in a bar.

    Attributes:
        stop: training ends at the first validation with an error of at most this.
        clip: the largest norm of the gradient; 0 for none.
        leak: the label is hidden.
    """

    task: str
    length: int
    cap: int
    cell: str
    start: str
    lr: float = 2e-3
    horizon: int = 0
    hidden: int = 32
    leak: bool = False
    stop: float = 0.01
    clip: float = 1.0


class Learned(NamedTuple):
    """What came of it.

    Attributes:
        error: on the test split at the end; the split is looked at once.
        steps: until the validation split was solved, or the cap.
        clipped: the share of steps after the first 100 whose gradient was clipped; None without
            clipping, and where the run ended within the first 100.
    """

    error: float
    steps: int
    clipped: float | None


def learn(
    case: Case, seed: int, begin: Callable[[torch.nn.Module], None] = lambda model: None
) -> Learned:
    """Train until the validation split is solved, or to the cap; `begin` may change the start."""
    task = _task(case, seed)
    torch.manual_seed(seed)
    model = task.model()
    begin(model)
    optimizer = torch.optim.Adam(model.parameters(), case.lr)
    norms: list[float] = []
    for step in range(1, case.cap + 1):
        inputs, truth = task.batch("train", step, task.recipe.batch_size)
        optimizer.zero_grad()
        task.loss(model, (task.hide(inputs) if case.leak else inputs, truth)).backward()
        norms.append(_clip(model, case.clip or math.inf))
        optimizer.step()
        if step % EVERY == 0 or step == case.cap:
            if _error(task, model, case.leak, "validation") <= case.stop:
                break
    late = [norm > case.clip for norm in norms[SETTLED:]] if case.clip else []
    clipped = sum(late) / len(late) if late else None
    return Learned(_error(task, model, case.leak, "test"), step, clipped)


def _clip(model: torch.nn.Module, most: float) -> float:
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), most))


def _task(case: Case, seed: int) -> MemoryTask:
    kind = find(case.task)
    own = {"task": case.task, "hidden": case.hidden, "lr": case.lr}
    if "length" not in kind.ignores:
        own["length"] = case.length
    start = {"cell": case.cell, "start": case.start, "horizon": case.horizon, "seed": seed}
    task = kind(Recipe(**{**kind.presets["quick"], **own, **start}))
    assert isinstance(task, MemoryTask)
    return task


def _error(task: MemoryTask, model: torch.nn.Module, leak: bool, split: str) -> float:
    inputs, truth = task.held_out(split)
    with torch.no_grad():
        answers = model(task.hide(inputs) if leak else inputs)
    return task.measure(answers, truth)[task.monitor]
