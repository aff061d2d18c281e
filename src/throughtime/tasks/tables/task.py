"""What the tasks on the users' own files share: facts, answers, the split, and vocabularies."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from torch import nn

from throughtime.errors import DataError
from throughtime.tasks.recipe import FileRecipe, Recipe, parse_facts, resolve_cell
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.read import hash_files, read, read_blocks
from throughtime.tasks.task import Score, Task

if TYPE_CHECKING:
    import polars as pl

BUILTIN = "builtin"


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a task finds in a file when a run begins, as plain values for config.json.

    Attributes:
        digest: SHA-256 of the file, or of all that is read.
        read: what people are shown before training, name and words.
    """

    digest: str
    read: list[list[str]] = field(default_factory=list)


SomeRecipe = TypeVar("SomeRecipe", bound=FileRecipe)
SomeFacts = TypeVar("SomeFacts", bound=FileFacts)


def hash_data(data: str) -> str:
    """Of the file of a recipe."""
    return BUILTIN if data == BUILTIN else hash_files(data)


class FileTask(Task, Generic[SomeRecipe, SomeFacts]):
    """A task on a file; what it finds there when a run begins is in the recipe, as `facts`."""

    in_percent = False
    facts_kind: ClassVar[type[Any]]
    recipe: SomeRecipe

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        assert isinstance(recipe, self.options)

    @classmethod
    @abstractmethod
    def find_facts(cls, recipe: SomeRecipe) -> SomeFacts:
        """The facts in the file of a recipe.

        Raises:
            DataError: the file cannot be learned from.
        """

    @classmethod
    def settle(cls, recipe: Recipe) -> Recipe:
        settled = cast(SomeRecipe, resolve_cell(recipe))
        facts = asdict(cls.find_facts(settled))
        return replace(settled, facts=json.loads(json.dumps(facts)))  # as config.json has them

    @cached_property
    def facts(self) -> SomeFacts:
        return cast(SomeFacts, parse_facts(self.facts_kind, self.recipe.facts))

    def describe_data(self) -> list[tuple[str, str]]:
        return [(name, words) for name, words in self.facts.read]


class TableTask(FileTask[SomeRecipe, SomeFacts]):
    """A task whose data are a table; a subclass finds what it holds and answers to another."""

    item_name = "FILE"
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
        """The model's answers to a table, as a table, and notes on them.

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


def find_unseen(
    table: DataTable, kind: str, keys: Sequence[Hashable], trained_on: Iterable[Hashable]
) -> list[int]:
    """The numbers of the items of a table that training did not see, by their keys.

    Raises:
        DataError: it saw all of them.
    """
    old = set(trained_on)
    unseen = [number for number, key in enumerate(keys) if key not in old]
    if not unseen:
        raise DataError(
            f"{table.name} must have {kind} that the training did not see, and it has none; "
            "give others"
        )
    return unseen


def check_like_training(table: DataTable, columns: Iterable[str]) -> None:
    """Raises DataError where a table has not a column that training had."""
    table.require(columns, ", as the file of the training had")


SIDES = ("train", "validation", "test")
_HELD_OUT = 0.1  # of the items, for each of the two sides


def split_by_key(keys: Sequence[str], weights: Sequence[int] | None = None) -> dict[str, list[int]]:
    """The numbers of the items of each side; those of one key stay together.

    A key whose items weigh more than a side may have is trained on; without weights each is 1.
    """
    by_key: dict[str, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        by_key[key].append(number)
    weights = weights or [1] * len(keys)
    share = max(1, math.floor(_HELD_OUT * sum(weights)))
    filled = {"test": 0, "validation": 0}
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    for key in sorted(by_key, key=hash_text):
        weight = sum(weights[n] for n in by_key[key])
        side = next((s for s, full in filled.items() if full < share >= weight), "train")
        if side != "train":
            filled[side] += weight
        sides[side] += by_key[key]
    return {side: sorted(numbers) for side, numbers in sides.items()}


def check_sides(sides: dict[str, list[int]], what: str, table: DataTable, reason: str) -> None:
    """Raises DataError where a side has no item."""
    for side in SIDES:
        if not sides[side]:
            raise DataError(
                f"each of training, validation and test must have {what} of {table.name}, and "
                f"{side} has none, {reason}"
            )


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def join_keys(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A key for each pair, the same for pairs that share their first or their second part.

    It is the smallest text among those that are connected, so that no order matters.
    """
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    listed = list(pairs)
    for first, second in listed:
        a, b = sorted((root((0, first)), root((1, second))))
        parent[b] = a
    return [root((0, first))[1] for first, _ in listed]


@dataclass(frozen=True)
class Vocabulary:
    """Units by number, after those that every vocabulary has: 0 .. `first` - 1.

    Attributes:
        units: as training has them, the most frequent first.
        first: the number of the first one.
        unknown: the number of all others.
    """

    units: list[str]
    first: int
    unknown: int

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {unit: number for number, unit in enumerate(self.units, start=self.first)}

    def __len__(self) -> int:
        return self.first + len(self.units)

    def __contains__(self, unit: str) -> bool:
        return unit in self._numbers

    def number(self, unit: str) -> int:
        """Of a unit, or of the unknown."""
        return self._numbers.get(unit, self.unknown)

    def unit(self, number: int) -> str:
        """The unit of a number; `?` for what is none."""
        return self.units[number - self.first] if number >= self.first else "?"


def most_frequent(units: Iterable[str], at_most: int, at_least: int = 1) -> list[str]:
    """The units that occur at least so often, the most frequent first, equals by their text."""
    counted = Counter(units)
    frequent = [unit for unit, count in counted.items() if count >= at_least]
    return sorted(frequent, key=lambda unit: (-counted[unit], unit))[:at_most]
