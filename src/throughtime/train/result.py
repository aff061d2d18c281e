"""What a run reached: scored, kept beside its weights, and read back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from throughtime.errors import RunError
from throughtime.tasks import Task, find
from throughtime.tasks.task import Score
from throughtime.train.begin import check_memory
from throughtime.train.run import Run, read_whole
from throughtime.train.storage import load_weights


def trained(run: Run) -> tuple[Task, nn.Module]:
    """The task of a finished run and its model in eval mode.

    Raises:
        RunError: the run has no weights, or they are damaged.
        OptionError: its model is too large for this machine.
    """
    task = find(run.recipe.task)(run.recipe)
    check_memory(task, training=False)
    with torch.random.fork_rng():
        model = task.model()
    load_weights(run, model)
    return task, model.eval()


def score_and_keep(run: Run, task: Task, model: nn.Module) -> tuple[Score, dict[str, Any]]:
    """Scores a model on the test split; keeps figures and findings in results.json."""
    score = task.score(model, "test")
    row, findings = _last_row(run), task.findings(model)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": row["step"],
        "wall_seconds": row["wall_seconds"],
        "cpu_seconds": row["cpu_seconds"],
    }
    run.write_results(
        {
            "task": task.name,
            "metrics": score.metrics,
            "baselines": task.baselines("test"),
            "split": score.split,
            "seconds": figures["wall_seconds"],
        }
        | figures
        | findings
        | {"test": asdict(score), "chance": task.chance("test")}
    )
    return score, figures | {"findings": findings}


def _last_row(run: Run) -> dict[str, Any]:
    """The last row of metrics.jsonl: a run that has ended has one with the steps and seconds."""
    try:
        row = json.loads(read_whole(run.metrics).splitlines()[-1])
        return {name: row[name] for name in ("step", "wall_seconds", "cpu_seconds")}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RunError(
            f"{run.metrics} must end with the last row that training wrote, and it does not; "
            "restore it, or train again in another folder"
        ) from error
