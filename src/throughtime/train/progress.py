"""What people see while a run trains: a bar on a terminal, a line a validation elsewhere."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from throughtime.train.module import Learner
from throughtime.train.run import Run


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
