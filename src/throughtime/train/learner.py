"""What Lightning is given: the task and its model, what keeps the run, what shows it."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from throughtime.errors import RunError
from throughtime.tasks import Task
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.task import Batch
from throughtime.train.journal import Journal
from throughtime.train.run import Run
from throughtime.train.step import StepLoader, clip, learning_rate, optimizer, step_seed
from throughtime.train.storage import State, all_finite, ended, write_checkpoint

CURE = "train again with a lower --lr or with --clip norm"


class Learner(pl.LightningModule):
    """Trains `model` on `task` from step `done` on; what is random depends on the step alone."""

    def __init__(self, task: Task, model: nn.Module, journal: Journal) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.journal = journal
        self.done = 0  # steps behind us
        self.restored: dict[str, Any] | None = None  # the optimizer's state to go on from
        self.last_loss = math.nan

    def configure_optimizers(self) -> Optimizer:
        made = optimizer(self.task.recipe, self.model.parameters())
        if self.restored is not None:
            made.load_state_dict(self.restored)
        return made

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self.task, lambda: self.done)

    def val_dataloader(self) -> list[str]:
        return ["validation"]  # the whole split is one batch to Lightning; the task cuts it

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch  # the loader made it where it is used

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(step_seed(self.task.recipe.seed, self.done))
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = learning_rate(self.task.recipe, self.done)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.task.loss(self.model, batch)
        self.last_loss = float(loss.detach())
        self._check_finite("loss", self.last_loss)
        return loss

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        norm, clipped = clip(self.task.recipe, self.model.parameters())
        self._check_finite("norm of the gradient", norm)
        self.journal.window.add(self.last_loss, norm, clipped)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; the callbacks' `on_train_batch_end`, which comes next, finds it counted."""
        super().optimizer_step(*args, **kwargs)
        recipe = self.task.recipe
        self.done += 1
        if self.done % recipe.log_every == 0 or self.done == recipe.steps:
            self.journal.steps_row(self.done, learning_rate(recipe, self.done - 1))

    def validation_step(self, batch: str, batch_idx: int) -> None:
        metrics = self.task.score(self.model, batch).metrics
        self.journal.row(step=self.done, split=batch, **metrics)
        self.log_dict(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()},
            batch_size=1,
        )

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"the {what} must stay finite, and it is {value} at step {self.done}; {CURE}; the "
                "last checkpoint is kept"
            )


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


class Shown(Callback):
    """A progress bar over the whole run, and a line for every validation, in log.txt too."""

    def __init__(self, run: Run, log: logging.Logger) -> None:
        self.run = run
        self.lines = log
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.row = self.bar.add_task("training", total=run.recipe.steps, loss=float("nan"))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        self.bar.update(self.row, completed=pl_module.done)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        assert isinstance(pl_module, Learner)
        self.bar.update(self.row, completed=pl_module.done, loss=pl_module.last_loss)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        metrics = trainer.callback_metrics.items()
        figures = " ".join(
            f"{name} {pl_module.task.shown(float(value))}" for name, value in metrics
        )
        seconds = pl_module.journal.clock.seconds()["wall_seconds"]
        self.lines.info(
            "step %d/%d  loss %.3f  validation: %s  %.0f s",
            pl_module.done,
            self.run.recipe.steps,
            pl_module.last_loss,
            figures,
            seconds,
        )

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.bar.stop()


class _LogFile(logging.FileHandler):
    """A file of which it is said that it cannot be written; logging would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what arose while writing


def open_log(run: Run) -> logging.Logger:
    """A logger to log.txt and to the terminal's error channel."""
    log = logging.getLogger(f"throughtime.run.{run.folder.name}")
    log.setLevel(logging.INFO)
    log.propagate = False
    close_log(log)
    file = _LogFile(run.log, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(file)
    log.addHandler(logging.StreamHandler())
    return log


def close_log(log: logging.Logger) -> None:
    """Closes a logger's files."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
