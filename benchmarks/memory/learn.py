"""One training: a case and a seed to an error."""

from __future__ import annotations

from typing import NamedTuple

import torch

from throughtime.tasks import find
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.recipe import Recipe

EVERY = 50  # steps between scores
SOLVED = 0.01  # half of what counts as solved on the test split


class Case(NamedTuple):
    """What one row trains; everything but cell, start, lr and horizon is shared in a bar."""

    task: str
    length: int
    cap: int
    cell: str
    start: str
    lr: float = 2e-3
    horizon: int = 0
    hidden: int = 32
    leak: bool = False


def learn(case: Case, seed: int) -> tuple[float, int]:
    """The error on the test split at the end, and the steps it took.

    Training ends once the validation split is solved, or at the cap: the test split is looked at
    once.
    """
    task = _task(case, seed)
    torch.manual_seed(seed)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), case.lr)
    for step in range(1, case.cap + 1):
        inputs, truth = task.batch("train", step, task.recipe.batch_size)
        optimizer.zero_grad()
        task.loss(model, (task.hide(inputs) if case.leak else inputs, truth)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % EVERY == 0 or step == case.cap:
            if _error(task, model, case.leak, "validation") <= SOLVED:
                break
    return _error(task, model, case.leak, "test"), step


def _task(case: Case, seed: int) -> MemoryTask:
    kind = find(case.task)
    own = {"task": case.task, "length": case.length, "hidden": case.hidden, "lr": case.lr}
    start = {"cell": case.cell, "start": case.start, "horizon": case.horizon, "seed": seed}
    task = kind(Recipe(**{**kind.presets["quick"], **own, **start}))
    assert isinstance(task, MemoryTask)
    return task


def _error(task: MemoryTask, model: torch.nn.Module, leak: bool, split: str) -> float:
    inputs, truth = task.batch(split, 0, 512)
    with torch.no_grad():
        answers = model(task.hide(inputs) if leak else inputs)
    return task.measure(answers, truth)[task.monitor]
