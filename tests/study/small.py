"""Runs and outcomes small enough for tests, and runs that go wrong in other processes."""

from __future__ import annotations

import os
import signal
from typing import Any

from throughtime.tasks import find
from throughtime.tasks.recipe import Recipe
from throughtime.train.study import Outcome, learn


def recipe(task: str = "latch", **values: Any) -> Recipe:
    """A recipe from the task's quick preset; four hidden units, six steps long, unless told."""
    own = {} if "length" in find(task).ignores else {"length": 6}
    preset = find(task).presets["quick"]
    return Recipe(**{**preset, "task": task, "threads": 1, "hidden": 4, **own, **values})


def outcome(cell: str, start: str, length: int, seed: int, **values: Any) -> Outcome:
    """An outcome made by hand."""
    own = {"cell": cell, "start": start, "length": length, "seed": seed}
    return Outcome(**{**own, "threads": 1, "parameters": 7, "metric": 0.5, **values})


def learn_or_die(one: Recipe) -> Outcome:
    """Seed 1 kills its process, seed 2 is an error of torch's kind, the others learn."""
    if one.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if one.seed == 2:
        raise RuntimeError("not enough memory")
    return learn(one)
