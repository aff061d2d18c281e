"""What tags are made from: their options, and what their file says."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from throughtime.tasks.recipe import option
from throughtime.tasks.tables.sides import Vocabulary
from throughtime.tasks.tables.text import TextRecipe

PADDING, UNKNOWN, FIRST = 0, 1, 2  # of words and characters


@dataclass(frozen=True, kw_only=True)
class TagRecipe(TextRecipe):
    """A recipe with the columns of a table and their roles."""

    task: str = option("tag", "What is learned")
    token: str = option("", "Column of tokens; empty: found")
    label: str = option("", "Column of labels; empty: found")
    series: str = option(
        "", "Column that tells sentences apart; empty: found, or a new one behind . ! ?"
    )
    group: str = option("", "Column whose values stay on one side, say a book; empty: sentences")
    layers: int = option(2, "Recurrent layers on top of each other", at_least=1, below=3)


@dataclass(frozen=True, kw_only=True)
class TagFacts:
    """What the file says, all of it plain, for config.json.

    Attributes:
        digest: SHA-256 of the file.
        read: what people are shown before training, name and words.
        token, label, series, group: columns, "" where there is none.
        words: of the training part without case, and characters, the most frequent first.
        labels: sorted.
    """

    digest: str
    read: list[list[str]] = field(default_factory=list)
    token: str
    label: str
    series: str
    group: str
    words: list[str] = field(default_factory=list)
    characters: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @cached_property
    def word_numbers(self) -> Vocabulary:
        return Vocabulary(self.words, FIRST, UNKNOWN)

    @cached_property
    def character_numbers(self) -> Vocabulary:
        return Vocabulary(self.characters, FIRST, UNKNOWN)
