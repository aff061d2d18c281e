"""Keeps a run: its best weights, and checkpoints from which it goes on to the same bits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import Tensor

from throughtime.errors import RunError
from throughtime.tasks.recipe import Recipe
from throughtime.train.checkpoint import State, ended, write_checkpoint
from throughtime.train.module import CURE, Learner
from throughtime.train.run import Run
from throughtime.train.weights import all_finite


class Keeper(Callback):
    """Writes checkpoints every so many steps, and after (never before) a validation.

    A checkpoint written where a validation is due, but before it, would skip it on resume.
    """

    def __init__(self, run: Run, stopping: EarlyStopping) -> None:
        self.run = run
        self.stopping = stopping
        self.finished = False
        self.more_steps: Recipe | None = None  # the recipe that a run with more steps had before
        self.best: dict[str, Any] = {"value": math.inf, "step": 0, "weights": {}}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        learner, recipe = _learner(pl_module), self.run.recipe
        due = learner.done % recipe.checkpoint_every == 0
        validation_follows = (
            learner.done % recipe.validate_every == 0 or learner.done == recipe.steps
        )
        if due and not validation_follows:
            self._write(trainer, learner)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        learner = _learner(pl_module)
        value = float(trainer.callback_metrics[learner.task.monitor])
        if value < self.best["value"]:
            weights = {name: w.clone() for name, w in learner.model.state_dict().items()}
            self.best = {"value": value, "step": learner.done, "weights": weights}
        self.finished = trainer.should_stop or learner.done >= self.run.recipe.steps
        self._write(trainer, learner)

    def _write(self, trainer: pl.Trainer, learner: Learner) -> None:
        """Writes what is finite alone, so that the checkpoint before stays where it is not."""
        where = f"the model after step {learner.done}"
        all_finite(learner.model.state_dict(), where, f"{CURE}; the last checkpoint is kept")
        state = {
            "step": learner.done,
            "model": learner.model.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "stopping": self.stopping.state_dict() | {"stopped_epoch": learner.done},
            "best": self.best,
            "journal": learner.journal.state(),
            "finished": self.finished,
        }
        write_checkpoint(self.run, state)

    def restore(self, learner: Learner, state: State) -> None:
        """Puts everything back as it was when `state`, which was checked, was written.

        Where the run has more steps or patience since, what ended it may end it no longer.
        """
        recipe, written = self.run.recipe, replace(self.run.recipe, **state["recipe"])
        learner.model.load_state_dict(state["model"])
        learner.restored, learner.done = state["optimizer"], state["step"]
        try:
            self.stopping.load_state_dict(state["stopping"])
        except ValueError as error:  # a reason to stop that this version of Lightning has not
            raise RunError(f"{self.run.checkpoint} is of another version: {error}") from error
        self.stopping.patience = recipe.patience
        self.best, self.finished = state["best"], state["finished"]
        if written.steps < recipe.steps:
            self.more_steps = written
        if ended(written, state) and not ended(recipe, state):
            self.finished = False

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best validation.

        Raises:
            RunError: every figure of every validation was NaN or infinite.
        """
        weights: dict[str, Tensor] = self.best["weights"]
        if not weights:
            raise RunError(
                f"the {self.stopping.monitor} of a validation must be finite once, and it never "
                f"was in {self.run.folder}; {CURE}"
            )
        return weights


def _learner(module: pl.LightningModule) -> Learner:
    assert isinstance(module, Learner)
    return module


def early_stopping(monitor: str, patience: int) -> EarlyStopping:
    """Stops after `patience` validations in a row without progress."""
    return EarlyStopping(monitor, patience=patience, mode="min", check_on_train_epoch_end=False)
