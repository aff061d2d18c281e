"""A run as people see it while it trains: a progress bar, lines, and the same lines in log.txt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from throughtime.train.journal import Journal
from throughtime.train.learner import Learner, Watcher
from throughtime.train.run import Run


class Shown(Watcher):
    """A progress bar over the whole run, and a line for every validation.

    Args:
        run: which.
        log: where the lines go.
        journal: knows the seconds.
        done: steps behind us.
    """

    def __init__(self, run: Run, log: logging.Logger, journal: Journal, done: int) -> None:
        self.run, self.lines, self.journal = run, log, journal
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            console=console,
            disable=not console.is_terminal,
        )
        steps, nan = run.recipe.steps, float("nan")
        self.row = self.bar.add_task("training", total=steps, completed=done, loss=nan)

    def after_step(self, learner: Learner) -> None:
        if not self.bar.disable:
            self.bar.update(self.row, completed=learner.done, loss=learner.loss)

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        figures = " ".join(f"{name} {learner.task.shown(v)}" for name, v in metrics.items())
        self.lines.info(
            "step %d/%d  loss %.3f  validation: %s  %.0f s",
            learner.done,
            self.run.recipe.steps,
            learner.loss,
            figures,
            self.journal.clock.seconds()["wall_seconds"],
        )


class _LogFile(logging.FileHandler):
    """A file of which it is said that it cannot be written; logging would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what arose while writing


@contextmanager
def open_log(run: Run) -> Iterator[logging.Logger]:
    """A logger to log.txt and to the terminal's error channel."""
    log = logging.getLogger(f"throughtime.run.{run.folder.name}")
    log.setLevel(logging.INFO)
    log.propagate = False
    _close(log)
    file = _LogFile(run.log, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(file)
    log.addHandler(logging.StreamHandler())
    try:
        yield log
    finally:
        _close(log)


def _close(log: logging.Logger) -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
