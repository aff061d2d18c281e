"""The text of a language run: read, cut into units, split by its order; its vocabulary, and
the counts of sequences of units."""

from __future__ import annotations

import lzma
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from throughtime.errors import DataError
from throughtime.tasks.recipe import FileRecipe, option
from throughtime.tasks.tables.pieces import open_text
from throughtime.tasks.tables.task import (
    BUILTIN,
    FileFacts,
    Vocabulary,
    hash_text,
    most_frequent,
)

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
class TextFacts(FileFacts):
    """The facts in the text.

    Attributes:
        units: of the training part, the most frequent first, words that occur there twice; unit 0
            is all others.
        letters: bits of each character in the training part, "" for one that it had not: what it
            costs to spell a unit that is none of `units`.
        ends: the characters at which validation and test begin.
        rows: sequences that are read side by side.
    """

    units: list[str]
    letters: dict[str, float]
    ends: list[int]
    rows: int


def read_text(data: str) -> str:
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
    """The facts in the text of a recipe.

    Raises:
        DataError: it is too short, or repeats itself across a border.
    """
    text = read_text(recipe.data)
    held = math.ceil(recipe.held_out * len(text))
    ends = [_find_line_end(text, len(text) - many * held) for many in (2, 1)]
    parts = {"training": text[: ends[0]], "validation": text[ends[0] : ends[1]],
             "test": text[ends[1] :]}  # fmt: skip
    for name, part in parts.items():
        if len(part) < _LEAST:
            raise DataError(
                f"{recipe.data} must have {_LEAST} characters for the {name} part, and it has "
                f"{len(part)} of {len(text)}; give a longer text"
            )
    _check_repeated(recipe.data, parts)
    counted = Counter(split_units(parts["training"], recipe.units))
    # Of words, those that occur once teach what it costs to spell a new one.
    least = 2 if recipe.units == "words" else 1
    units = most_frequent(counted, _MOST, least)
    tokens = sum(counted.values())
    rows = max(1, min(recipe.batch_size, tokens // (4 * recipe.length)))
    unseen = sum(unit not in counted for unit in split_units(parts["test"], recipe.units))
    read = [
        ["text", f"{recipe.data}: {len(text)} characters, {text.count(chr(10))} lines"],
        ["units", f"{recipe.units}: {len(units)} different of {len(counted)} in the training part"],
        ["unknown", f"{unseen} of the test part's {recipe.units}"],
        ["split by order", ", ".join(f"{name} {len(part)}" for name, part in parts.items())
                           + " characters"],
        ["windows", f"{recipe.length} steps, {rows} side by side, states carried on"],
    ]  # fmt: skip
    return TextFacts(digest=hash_text(text), read=read, units=units, ends=ends, rows=rows,
                     letters=_count_letters(parts["training"]))  # fmt: skip


def _find_line_end(text: str, place: int) -> int:
    """The end of the line at a place, where one ends nearby."""
    end = text.find("\n", place, place + 1000)
    return end + 1 if end >= 0 else place


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


def split_units(text: str, units: str) -> list[str]:
    """The text in pieces, which together are the text."""
    return list(text) if units == "characters" else _UNITS.findall(text)


def _count_letters(text: str) -> dict[str, float]:
    """Bits of each character by itself; "" is one that was never seen, by its code point."""
    counted = Counter(text)
    total = len(text) + len(counted) + 1
    bits = {one: -math.log2(count / total) for one, count in sorted(counted.items())}
    return bits | {"": math.log2(total) + math.log2(0x110000)}


class TextUnits:
    """Numbers for units, and the bits of spelling a unit that has none.

    Args:
        facts: of the training part.
        units: characters or words.
    """

    def __init__(self, facts: TextFacts, units: str) -> None:
        self.kind, self.facts = units, facts
        self.units = Vocabulary(facts.units, first=UNKNOWN + 1, unknown=UNKNOWN)

    def encode(self, text: str) -> Tokens:
        """The text as numbers."""
        pieces = split_units(text, self.kind)
        numbers = torch.tensor([self.units.number(piece) for piece in pieces])
        spelled = [self._spelled(piece) if piece not in self.units else 0.0 for piece in pieces]
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
        spelled: (N,) bits of spelling each: 0 for units that have a number.
        characters: (N,) of each.
    """

    numbers: Tensor
    spelled: Real
    characters: Whole


Whole = NDArray[np.int64]
Real = NDArray[np.float64]
LONGEST = 5


@dataclass(frozen=True)
class _Level:
    """The sequences of k units that occur in the training text.

    Attributes:
        keys: sorted; number of the first k - 1 units' sequence times V, plus the last unit.
        text: how often each occurs in the text.
        company: before how many different units each occurs.
    """

    keys: Whole
    text: Real
    company: Real


class Grams:
    """Unigram to 5-gram: what comes next by counts, interpolated after Kneser and Ney.

        p_k(w | c) = max(n(c w) - d, 0) / n(c .) + b(c) p_{k-1}(w | c'),      p_0(w) = 1 / V
        b(c) = sum over w of min(d, n(c w)) / n(c .)

    c are the k - 1 units before, c' is c without its first. In the longest n counts what stands in
    the text; below, in how many different units' company c w stands. d is one of three for each
    length, by whether n is 1, 2 or more, from how many counts are 1, 2, 3 and 4.

    Args:
        numbers: (N,) of a training text's units.
        size: V, how many units there are.

    Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling
    (1999), section 3, interpolated modified Kneser-Ney.
    """

    def __init__(self, numbers: Whole, size: int) -> None:
        self.size, self.levels = size, list[_Level]()
        context = np.zeros(len(numbers), np.int64)
        places: list[Whole] = []
        for k in range(1, LONGEST + 1):
            # Places whose sequence of k units ends there; the first k - 1 have none.
            keys = context[k - 1 :] * size + numbers[k - 1 :]
            unique, first, number, counts = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            if places:  # each sequence of k units is one more company of its last k - 1
                suffix = places[-1][1:][first]
                company = np.bincount(suffix, minlength=len(self.levels[-1].keys))
                self.levels[-1] = replace(self.levels[-1], company=company.astype(np.float64))
            self.levels.append(_Level(unique, counts.astype(np.float64), np.zeros(0)))
            places.append(number)
            context = np.full(len(numbers), -1, np.int64)
            context[k:] = number[:-1]
        self._sums = [{c: self._summed(k, c) for c in ("text", "company")} for k in range(LONGEST)]

    def bits(self, numbers: Whole, longest: int) -> Real:
        """Bits of each unit of a text by sequences of at most `longest` units; (N,)."""
        shares = np.full(len(numbers), 1.0 / self.size)
        contexts = np.zeros(len(numbers), np.int64)
        for k in range(longest):
            shares = self._mixed(k, "text" if k == longest - 1 else "company", contexts, numbers,
                                 shares)  # fmt: skip
            places = self._place(k, contexts, numbers)
            contexts = np.full(len(numbers), -1, np.int64)
            contexts[1:] = places[:-1]
        return np.asarray(-np.log2(shares))

    def _mixed(self, k: int, counted: str, contexts: Whole, numbers: Whole, below: Real) -> Real:
        """The probability of each unit after its context, where training had that context."""
        counts = getattr(self.levels[k], counted)
        totals, taken, discounts = self._sums[k][counted]
        place = self._place(k, contexts, numbers)
        count = np.where(place >= 0, counts[place], 0.0)
        discount = np.where(count > 0, discounts[np.minimum(count, 3).astype(int)], 0.0)
        inside = np.maximum(contexts, 0)
        total = totals[inside]
        mixed = (count - np.minimum(discount, count) + taken[inside] * below) / np.maximum(total, 1)
        return np.asarray(np.where((contexts >= 0) & (total > 0), mixed, below))

    def _place(self, k: int, contexts: Whole, numbers: Whole) -> Whole:
        """The number of each sequence of k + 1 units; -1 where the training text has it not."""
        keys, wanted = self.levels[k].keys, contexts * self.size + numbers
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((keys[at] == wanted) & (contexts >= 0), at, -1)

    def _summed(self, k: int, counted: str) -> tuple[Real, Real, Real]:
        """Of each context, over the units after it: counts, discounts; and d of 0 to 3."""
        level = self.levels[k]
        counts: Real = getattr(level, counted)
        discounts = _estimate_discounts(counts)
        if not len(counts):
            return np.zeros(1), np.zeros(1), discounts
        contexts = level.keys // self.size
        size = len(self.levels[k - 1].keys) if k else 1
        discount = np.minimum(discounts[np.minimum(counts, 3).astype(int)], counts)
        totals, taken = (np.bincount(contexts, n, minlength=size).astype(np.float64)
                         for n in (counts, discount))  # fmt: skip
        return totals, taken, discounts


def _estimate_discounts(counts: Real) -> Real:
    """d of a count of 0, 1, 2, and 3 or more; 1/2 where the counts of counts give none."""
    often = [float((counts == n).sum()) for n in (1, 2, 3, 4)]
    if min(often) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = often[0] / (often[0] + 2 * often[1])
    discounts = [n - (n + 1) * y * often[n] / often[n - 1] for n in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.05), float(n)) for n, d in enumerate(discounts, start=1))])
