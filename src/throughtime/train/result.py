"""What a run reached: scored, kept beside its weights, and read back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from throughtime.tasks import Task, find
from throughtime.tasks.task import Score
from throughtime.train.run import Run
from throughtime.train.weights import load_weights


def trained(run: Run) -> tuple[Task, nn.Module]:
    """The task of a finished run and its model in eval mode; needs no Lightning.

    Raises:
        RunError: the run has no weights, or they are damaged.
    """
    task = find(run.recipe.task)(run.recipe)
    with torch.random.fork_rng():
        model = task.model()
    load_weights(run, model)
    return task, model.eval()


def score_and_keep(run: Run, task: Task, model: nn.Module) -> tuple[Score, dict[str, Any]]:
    """Scores a model on the test split; keeps the figures in results.json."""
    score = task.score(model, "test")
    row = _last_row(run)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": row["step"],
        "wall_seconds": row["wall_seconds"],
        "cpu_seconds": row["cpu_seconds"],
    }
    run.write_results(figures | {"test": asdict(score), "chance": task.chance("test")})
    return score, figures


def _last_row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(run.metrics.read_text(encoding="utf-8").splitlines()[-1])
    return row
