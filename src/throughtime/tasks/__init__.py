"""The tasks: one, or a family, a file or folder; each has data, model, loss, metric, chance level.

A new one needs no other edit.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType

from throughtime.tasks.recipe import one_of
from throughtime.tasks.task import Task as Task


@cache
def available() -> dict[str, type[Task]]:
    """Every task of this package by its name, in alphabetical order."""
    tasks: dict[str, type[Task]] = {}
    for entry in pkgutil.iter_modules(__path__):
        for task in _tasks_in(importlib.import_module(f"{__name__}.{entry.name}")):
            tasks[task.name] = task
    return dict(sorted(tasks.items()))


def find(name: str) -> type[Task]:
    """The task called `name`.

    Raises:
        OptionError: no task has that name; says which is closest.
    """
    return available()[one_of("task", name, tuple(available()))]


def _tasks_in(module: ModuleType) -> list[type[Task]]:
    kinds = [value for value in vars(module).values() if isinstance(value, type)]
    return [kind for kind in kinds if issubclass(kind, Task) and not inspect.isabstract(kind)]
