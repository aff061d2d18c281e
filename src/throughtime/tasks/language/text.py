"""The text of a language run: read, cut into units, split by its order, its vocabulary found."""

from __future__ import annotations

import hashlib
import lzma
import math
import re
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.tasks.recipe import FileRecipe, option
from throughtime.tasks.tables.pieces import open_text
from throughtime.tasks.tables.task import BUILTIN

_MOST = 20_000  # words of a vocabulary
_UNITS = re.compile(r" ?\w+| ?[^\w\s]+|\s", re.UNICODE)  # words and marks with the space before
_LEAST, _LINE, _SAME = 200, 20, 0.5  # characters of a part, of a line that may repeat, share
UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe(FileRecipe):
    """A recipe with a text and its units."""

    task: str = option("language", "What is learned")
    data: str = option(BUILTIN, "File of text, UTF-8; builtin: the book of Genesis in English")
    units: str = option(
        "characters", "What a step reads: characters or words", choices=("characters", "words")
    )
    length: int = option(64, "Steps of a window, that a gradient goes back", at_least=4)
    held_out: float = option(
        0.1, "Share of the text kept for the test, and as much to choose by", above=0, below=0.4
    )


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """What the text says, all of it plain, for config.json.

    Attributes:
        digest: SHA-256 of the text.
        read: what people are shown before training, name and words.
        units: of the training part, the most frequent first, words that stand there twice; unit 0
            stands for all others.
        letters: bits of each character in the training part, "" for one that it had not: what it
            costs to spell a unit that is none of `units`.
        ends: the characters at which validation and test begin.
        rows: sequences that are read side by side.
    """

    digest: str
    read: list[list[str]]
    units: list[str]
    letters: dict[str, float]
    ends: list[int]
    rows: int


def text_of(data: str) -> str:
    """The text of a file; of the package, where none is named.

    Raises:
        DataError: it is empty, or no UTF-8; names the line.
    """
    if data == BUILTIN:
        packed = (files(__package__) / "data" / "genesis.txt.xz").read_bytes()
        return lzma.decompress(packed).decode()
    with open_text(data) as file:
        text = file.read().replace("\r\n", "\n")
    if not text.strip():
        raise DataError(f"{data} must hold text, and it has none ({len(text)} characters)")
    return text


def find_text(recipe: LanguageRecipe) -> TextFacts:
    """All that the text of a recipe says.

    Raises:
        DataError: it is too short, or says the same on both sides of a border.
    """
    text = text_of(recipe.data)
    held = math.ceil(recipe.held_out * len(text))
    ends = [_line_end(text, len(text) - many * held) for many in (2, 1)]
    parts = {"training": text[: ends[0]], "validation": text[ends[0] : ends[1]],
             "test": text[ends[1] :]}  # fmt: skip
    for name, part in parts.items():
        if len(part) < _LEAST:
            raise DataError(
                f"{recipe.data} must have {_LEAST} characters for the {name} part, and it has "
                f"{len(part)} of {len(text)}; give a longer text"
            )
    _check_repeated(recipe.data, parts)
    counted = Counter(cut(parts["training"], recipe.units))
    least = 2 if recipe.units == "words" else 1  # what stands once teaches what a new word costs
    units = sorted((u for u in counted if counted[u] >= least), key=lambda u: (-counted[u], u))
    units = units[:_MOST]
    tokens = sum(counted.values())
    rows = max(1, min(recipe.batch_size, tokens // (4 * recipe.length)))
    unseen = sum(unit not in counted for unit in cut(parts["test"], recipe.units))
    read = [
        ["text", f"{recipe.data}: {len(text)} characters, {text.count(chr(10))} lines"],
        ["units", f"{recipe.units}: {len(units)} different of {len(counted)} in the training part"],
        ["unknown", f"{unseen} of the test part's {recipe.units}"],
        ["split by order", ", ".join(f"{name} {len(part)}" for name, part in parts.items())
                           + " characters"],
        ["windows", f"{recipe.length} steps, {rows} side by side, states carried on"],
    ]  # fmt: skip
    return TextFacts(digest=digest_of(text), read=read, units=units, ends=ends, rows=rows,
                     letters=_spelling(parts["training"]))  # fmt: skip


def digest_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _line_end(text: str, place: int) -> int:
    """The end of the line at a place, where one ends nearby."""
    found = text.find("\n", place, place + 1000)
    return found + 1 if found >= 0 else place


def _check_repeated(name: str, parts: dict[str, str]) -> None:
    """Refuses a text whose test part is for the most part a copy of what is trained on."""
    seen = set(parts["training"].splitlines())
    long = [line for line in parts["test"].splitlines() if len(line) >= _LINE]
    again = [line for line in long if line in seen]
    if len(long) >= 5 and len(again) > _SAME * len(long):
        raise DataError(
            f"the test part of {name} must be new, and {len(again)} of its {len(long)} lines of "
            f"{_LINE} characters or more stand in the training part too, {again[0][:40]!r} among "
            "them; leave the copies out"
        )


def cut(text: str, units: str) -> list[str]:
    """The text in pieces, which together are the text."""
    return list(text) if units == "characters" else _UNITS.findall(text)


def _spelling(text: str) -> dict[str, float]:
    """Bits of each character by itself; "" is one that was never seen, by its code point."""
    counted = Counter(text)
    total = len(text) + len(counted) + 1
    bits = {one: -math.log2(count / total) for one, count in sorted(counted.items())}
    return bits | {"": math.log2(total) + math.log2(0x110000)}


class TextUnits:
    """Numbers for units, and what a unit costs beside its number.

    Args:
        facts: of the training part.
        units: characters or words.
    """

    def __init__(self, facts: TextFacts, units: str) -> None:
        self.kind, self.facts = units, facts
        self.names = ["", *facts.units]
        self.numbers = {unit: number for number, unit in enumerate(self.names) if number}

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, text: str) -> Tokens:
        """The text as numbers."""
        pieces = cut(text, self.kind)
        numbers = torch.tensor([self.numbers.get(piece, UNKNOWN) for piece in pieces])
        spelled = [self._spelled(piece) if piece not in self.numbers else 0.0 for piece in pieces]
        return Tokens(numbers.long(), np.array(spelled), np.array([len(one) for one in pieces]))

    def _spelled(self, unit: str) -> float:
        """Bits of spelling a unit that has no number; a word ends with a mark that costs most."""
        letters = self.facts.letters
        bits = sum(letters.get(one, letters[""]) for one in unit)
        return bits + (letters[""] - math.log2(0x110000) if self.kind == "words" else 0.0)


@dataclass(frozen=True)
class Tokens:
    """A text as numbers.

    Attributes:
        numbers: (N,) of its units.
        spelled: (N,) bits that each costs beside its number: 0 for those that have one.
        characters: (N,) of each.
    """

    numbers: Tensor
    spelled: np.ndarray[Any, np.dtype[np.float64]]
    characters: np.ndarray[Any, np.dtype[np.int64]]
