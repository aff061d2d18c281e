"""What translations are made from: their options, and what their file says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from throughtime.tasks.recipe import option
from throughtime.tasks.tables.sides import Vocabulary
from throughtime.tasks.tables.text import TextRecipe
from throughtime.tasks.translate.model import END, PADDING
from throughtime.tasks.translate.units import KINDS, Cutter, Kind, join

UNKNOWN = PADDING + 1  # of sources; targets have END and START there, and UNKNOWN behind them


@dataclass(frozen=True, kw_only=True)
class TranslateRecipe(TextRecipe):
    """A recipe with the columns of a table and their roles."""

    task: str = option("translate", "What is learned")
    source: str = option("", "Column to translate from; empty: found")
    target: str = option("", "Column to translate into; empty: found")
    units: Kind = option(
        "characters", "What is read and written one by one; pieces: of words", choices=KINDS
    )
    longest: int = option(
        200,
        "Units of a source or a target, words for pieces; longer pairs are left out and counted",
        at_least=1,
    )
    beam: int = option(
        4, "Beginnings followed at once when a trained net translates; 1: greedy",
        at_least=1, below=65,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TranslateFacts:
    """What the file says, all of it plain, for config.json.

    Attributes:
        digest: SHA-256 of the file.
        read: what people are shown before training, name and words.
        source, target: columns.
        source_units, target_units: of the training part, the most frequent first.
        source_merges, target_merges: of pieces.
    """

    digest: str
    read: list[list[str]] = field(default_factory=list)
    source: str
    target: str
    source_units: list[str] = field(default_factory=list)
    target_units: list[str] = field(default_factory=list)
    source_merges: list[str] = field(default_factory=list)
    target_merges: list[str] = field(default_factory=list)

    def cutters(self, kind: Kind) -> tuple[Cutter, Cutter]:
        """Of sources and of targets."""
        return Cutter(kind, tuple(self.source_merges)), Cutter(kind, tuple(self.target_merges))

    @cached_property
    def sources(self) -> Vocabulary:
        return Vocabulary(self.source_units, first=UNKNOWN + 1, unknown=UNKNOWN)

    @cached_property
    def targets(self) -> Vocabulary:
        return Vocabulary(self.target_units, first=3, unknown=2)


def until_end(numbers: Iterable[int], targets: Vocabulary, kind: str) -> str:
    """The text behind numbers, up to the first END; what is no unit is `?`."""
    units = []
    for number in numbers:
        if number == END:
            break
        units.append(targets.unit(number))
    return join(units, kind)
