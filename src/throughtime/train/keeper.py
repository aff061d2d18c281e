"""What keeps a run: rows of metrics.jsonl, checkpoints, best weights, and patience.

A row is written every few steps and every validation, and none twice after a resume.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from throughtime.errors import RunError
from throughtime.tasks.recipe import Recipe
from throughtime.train.learner import Best, Learner, Watcher
from throughtime.train.run import Run
from throughtime.train.step import learning_rate
from throughtime.train.storage import State, check_finite, has_ended, write_checkpoint


@dataclass
class SinceLastRow:
    """What was seen since the last row."""

    steps: int = 0
    clipped: int = 0
    loss: float = 0.0
    norm: float = 0.0

    def add(self, loss: float, norm: float, clipped: bool) -> None:
        self.steps += 1
        self.clipped += clipped
        self.loss += loss
        self.norm += norm

    def means(self) -> dict[str, float]:
        """Loss in nats, gradient norm before clipping, share of steps that were clipped."""
        loss, norm = self.loss / self.steps, self.norm / self.steps
        return {"loss": loss, "gradient_norm": norm, "clipped_share": self.clipped / self.steps}


@dataclass
class Clock:
    """Seconds of wall and of processor that went into a run, over all its processes."""

    wall_before: float = 0.0
    cpu_before: float = 0.0
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)

    def seconds(self) -> dict[str, float]:
        wall = self.wall_before + time.perf_counter() - self._wall
        cpu = self.cpu_before + time.process_time() - self._cpu
        return {"wall_seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


class Journal:
    """The open metrics.jsonl of a run; its state goes into the checkpoint."""

    def __init__(self, path: Path, state: dict[str, Any] | None = None) -> None:
        state = state or {"bytes": 0, "window": {}, "wall": 0.0, "cpu": 0.0}
        self.window = SinceLastRow(**state["window"])
        self.clock = Clock(state["wall"], state["cpu"])
        self._file = path.open("ab")
        if self._file.tell() < state["bytes"]:
            self._file.close()
            raise RunError(
                f"{path} must have at least the {state['bytes']} bytes that were there when the "
                "checkpoint was written, and it has fewer; restore it, or train again elsewhere"
            )
        self._file.truncate(state["bytes"])

    def row(self, **values: Any) -> None:
        """Appends one row, with the seconds that went into the run so far."""
        self._file.write((json.dumps(values | self.clock.seconds()) + "\n").encode())
        self._file.flush()

    def steps_row(self, step: int, lr: float) -> None:
        """Appends the means since the last such row."""
        self.row(step=step, lr=lr, **self.window.means())
        self.window = SinceLastRow()

    def state(self) -> dict[str, Any]:
        """Where the file ends now, what waits for the next row, and the seconds."""
        os.fsync(self._file.fileno())
        clock = self.clock.seconds()
        return {
            "bytes": self._file.tell(),
            "window": asdict(self.window),
            "wall": clock["wall_seconds"],
            "cpu": clock["cpu_seconds"],
        }

    def close(self) -> None:
        self._file.close()


CURE = "train again with a lower --lr or with --clip norm"


class Patience(Watcher):
    """Has had enough after `patience` validations in a row without progress, or one not finite."""

    def __init__(self, monitor: str, patience: int) -> None:
        self.monitor, self.patience = monitor, patience
        self.lowest, self.waited = math.inf, 0

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        value = metrics[self.monitor]
        if not math.isfinite(value):
            self.enough = True
        elif value < self.lowest:
            self.lowest, self.waited = value, 0
        else:
            self.waited += 1
            self.enough = self.waited >= self.patience

    def state(self) -> State:
        """What a checkpoint has of it."""
        return {"waited": self.waited, "lowest": self.lowest}


def collect_state(learner: Learner, stopping: Patience) -> State:
    """The state of a learner: what a checkpoint has of it, and what all processes begin with."""
    return {
        "step": learner.done,
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "stopping": stopping.state(),
    }


def restore_state(state: State, learner: Learner, stopping: Patience) -> None:
    """Gives a learner the state of another one."""
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.done = state["step"]
    stopping.waited, stopping.lowest = state["stopping"]["waited"], state["stopping"]["lowest"]


class Keeper(Watcher):
    """Writes rows, and checkpoints every so many steps and after (never before) a validation.

    A checkpoint written where a validation is due, but before it, would skip it on resume.

    Args:
        run: where.
        journal: its rows.
        stopping: what may end the run; it looks at a validation before the keeper does.
    """

    def __init__(self, run: Run, journal: Journal, stopping: Patience) -> None:
        self.run, self.journal, self.stopping = run, journal, stopping
        self.best, self.finished = Best(), False
        self.more_steps: Recipe | None = None  # the recipe that a run with more steps had before

    def after_step(self, learner: Learner) -> None:
        recipe, done = self.run.recipe, learner.done
        self.journal.window.add(learner.loss, learner.norm, learner.clipped)
        last = done == recipe.steps
        if done % recipe.log_every == 0 or last:
            self.journal.steps_row(done, learning_rate(recipe, done - 1))
        validation_follows = done % recipe.validate_every == 0 or last
        if done % recipe.checkpoint_every == 0 and not validation_follows:
            self._write(learner)

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        self.journal.row(step=learner.done, split="validation", **metrics)
        self.best.see(metrics[self.stopping.monitor], learner)
        self.finished = self.stopping.enough or learner.done >= self.run.recipe.steps
        self._write(learner)

    def _write(self, learner: Learner) -> None:
        """Writes what is finite alone, so that the checkpoint before stays where it is not."""
        where = f"the model after step {learner.done}"
        check_finite(learner.model.state_dict(), where, f"{CURE}; the last checkpoint is kept")
        rest = {
            "best": vars(self.best), "journal": self.journal.state(), "finished": self.finished
        }  # fmt: skip
        write_checkpoint(self.run, collect_state(learner, self.stopping) | rest)

    def restore(self, learner: Learner, state: State) -> None:
        """Puts everything back as it was when `state`, which was checked, was written.

        Where the run has more steps or patience since, what ended it may end it no longer.
        """
        recipe, written = self.run.recipe, replace(self.run.recipe, **state["recipe"])
        restore_state(state, learner, self.stopping)
        self.best, self.finished = Best(**state["best"]), state["finished"]
        if written.steps < recipe.steps:
            self.more_steps = written
        if has_ended(written, state) and not has_ended(recipe, state):
            self.finished = False

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best validation.

        Raises:
            RunError: every figure of every validation was NaN or infinite.
        """
        if not self.best.weights:
            raise RunError(
                f"the {self.stopping.monitor} of a validation must be finite once, and it never "
                f"was in {self.run.folder}; {CURE}"
            )
        return self.best.weights
