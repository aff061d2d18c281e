"""What the tasks on the users' own files share: facts from a file, answers to a file."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from torch import nn

from throughtime.errors import DataError
from throughtime.tasks.layers import with_cell_found
from throughtime.tasks.recipe import FileRecipe, Recipe, did_you_mean, facts_in
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.read import read, read_blocks
from throughtime.tasks.task import Score, Task

if TYPE_CHECKING:
    import polars as pl

BUILTIN = "builtin"


Given = TypeVar("Given", bound=FileRecipe)
Found = TypeVar("Found")


class FileTask(Task, Generic[Given, Found]):
    """A task on a file; what it finds there when a run begins stands in the recipe, as `facts`.

    Attributes:
        options_given: its recipe.
    """

    shares = False
    facts_kind: ClassVar[type[Any]]  # a dataclass with a field `read`, for people

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe, self.options)
        self.options_given = cast(Given, recipe)

    @classmethod
    @abstractmethod
    def find_facts(cls, recipe: Given) -> Found:
        """All that the file of a recipe says.

        Raises:
            DataError: the file cannot be learned from.
        """

    @classmethod
    def settle(cls, recipe: Recipe) -> Recipe:
        given = cast(Given, with_cell_found(recipe))
        facts = asdict(cast(Any, cls.find_facts(given)))
        return replace(given, facts=json.loads(json.dumps(facts)))  # as config.json has them

    @cached_property
    def facts(self) -> Found:
        """What the file says."""
        return cast(Found, facts_in(self.facts_kind, self.options_given.facts))

    def read(self) -> list[tuple[str, str]]:
        return [(name, words) for name, words in cast(Any, self.facts).read]


class TableTask(FileTask[Given, Found]):
    """A task whose data are a table; a subclass finds what it holds and answers to another."""

    asks = "FILE"
    lines: ClassVar[bool] = False  # it answers to lines of text too
    together: ClassVar[int] = 0  # series side by side, each answered by itself; 0: not so

    @property
    def series(self) -> str:
        """The column that names series, where each is answered by itself; "": each row is one."""
        return ""

    def blocks(self, path: str) -> Iterator[DataTable]:
        """The table in a file, some whole series at a time, where each is answered by itself.

        Raises:
            DataError: as `table`, or it cannot be cut.
        """
        return read_blocks(path, self.series, self.together)

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
