"""Trains a task on your data: `run = throughtime.train("forecast", data=FILE, target="temp")`.

The package is called like a function, and its parts are imported like those of any other: `learner`
has the one training loop, with which `loop` trains a run, writes its rows and checkpoints; `run`
and `storage` read and write run folders. All need the extra `train`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from os import PathLike
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.train.result import TrainedRun


class _Called(ModuleType):
    """A package that is called: what trains is imported then, for it imports `throughtime`.

    Its parts are attributes without an import of their own.
    """

    def __getattr__(self, name: str) -> ModuleType:
        if name in {part.name for part in iter_modules(self.__path__)}:
            return import_module(f"{self.__name__}.{name}")
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __call__(
        self, task: str, data: Any = None, *, out: str | PathLike[str] | None = None,
        resume: bool = False, **options: Any,
    ) -> TrainedRun:  # fmt: skip
        """Trains a task to its end and says what it reached.

        Args:
            task: its name, as in `throughtime train NAME`.
            data: a file, or a frame of polars or pandas, which is kept as a Parquet file next to
                the run folder; None: the task's own.
            out: the run folder; None: the next free runs/TASK-NUMBER.
            resume: go on with the run in `out`, or with the newest of the task.
            options: of the task, as on the command line; lists of columns may be lists.

        Returns:
            The run, as `throughtime.load` gives it too.

        Raises:
            OptionError, DataError, RunError: an option, the data or the folder is wrong.
        """
        trained: TrainedRun = import_module("throughtime.train.result").train_task(
            task, data, out, resume, options
        )
        return trained


def load(folder: str | PathLike[str]) -> TrainedRun:
    """The run in a folder, its training ended.

    Raises:
        RunError: it is no run, or one without weights.
    """
    trained: TrainedRun = import_module("throughtime.train.result").open_run(folder)
    return trained


sys.modules[__name__].__class__ = _Called
