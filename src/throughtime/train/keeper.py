"""Keeps a run: its best weights, and checkpoints from which it goes on to the same bits."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import Tensor

from throughtime.train.checkpoint import State, write_checkpoint
from throughtime.train.module import CURE, Learner
from throughtime.train.run import Run
from throughtime.train.weights import all_finite, fit_into


class Keeper(Callback):
    """Writes checkpoints every so many steps, and after (never before) a validation.

    A checkpoint written where a validation is due, but before it, would skip it on resume.
    """

    def __init__(self, run: Run, stopping: EarlyStopping) -> None:
        self.run = run
        self.stopping = stopping
        self.finished = False
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
        """Puts everything back as it was when `state` was written."""
        fit_into(learner.model, state["model"], str(self.run.checkpoint), "restore config.json")
        learner.restored, learner.done = state["optimizer"], state["step"]
        self.stopping.load_state_dict(state["stopping"])
        self.best, self.finished = state["best"], state["finished"]

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best validation."""
        weights: dict[str, Tensor] = self.best["weights"]
        return weights


def _learner(module: pl.LightningModule) -> Learner:
    assert isinstance(module, Learner)
    return module


def early_stopping(monitor: str, patience: int) -> EarlyStopping:
    """Stops after `patience` validations in a row without progress."""
    return EarlyStopping(monitor, patience=patience, mode="min", check_on_train_epoch_end=False)
