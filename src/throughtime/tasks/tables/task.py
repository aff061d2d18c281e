"""What the tasks on tables of the users' own share: facts from a file, answers to a file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from throughtime.errors import DataError
from throughtime.tasks.recipe import did_you_mean
from throughtime.tasks.tables.read import read
from throughtime.tasks.tables.table import DataTable
from throughtime.tasks.task import Score, Task

if TYPE_CHECKING:
    import polars as pl

BUILTIN = "builtin"


class TableTask(Task):
    """A task whose data are a table; a subclass finds what it holds and answers to another."""

    shares = False
    asks = "FILE"
    lines: ClassVar[bool] = False  # it answers to lines of text too

    def table(self, path: str) -> DataTable:
        """The table in a file, as this task reads it.

        Raises:
            DataError: it cannot be taken; names the line.
        """
        return read(path)

    @abstractmethod
    def predict(self, model: nn.Module, table: DataTable) -> tuple[pl.DataFrame, list[str]]:
        """What `model` says to a table, as a table, and what people should know of it.

        Raises:
            DataError: the table cannot be taken; names the column or the row.
        """

    @abstractmethod
    def measure_on(
        self, model: nn.Module, table: DataTable
    ) -> tuple[Score, dict[str, dict[str, float]]]:
        """The metrics of `model`, and of the baselines, on a table that has the truth.

        Raises:
            DataError: the table cannot be taken; names the column or the row.
        """

    def evaluate(self, model: nn.Module, file: str) -> tuple[Score, dict[str, dict[str, float]]]:
        """As `measure_on`, of the table in a file."""
        return self.measure_on(model, self.table(file))

    def answer(self, model: nn.Module, items: Sequence[str]) -> list[str]:
        """The answers to files, each as JSON lines."""
        return [self.predict(model, self.table(item))[0].write_ndjson() for item in items]

    def chance(self, split: str) -> dict[str, float]:
        """Of the simplest baseline."""
        return next(iter(self.baselines(split).values()))


def check_like_training(table: DataTable, columns: Sequence[str]) -> None:
    """Raises DataError where a table has not a column that training had."""
    for column in columns:
        if column and column not in table.frame.columns:
            hint = did_you_mean(column, table.frame.columns)
            raise DataError(
                f"{table.name} must have the column {column}, as the file of the training had, "
                f"and it has {', '.join(table.frame.columns[:20])}{hint}"
            )
