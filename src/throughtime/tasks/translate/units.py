"""Units of texts: characters, words and marks, or pieces of words that stand often.

Pieces are found by byte pair encoding on the training part: its words begin as characters, and the
two neighbours that stand most often become one, again and again.

Source: Sennrich, Haddow and Birch, Neural Machine Translation of Rare Words with Subword Units
(2016).
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from throughtime.tasks.tables.text import words_of

Kind = Literal["characters", "words", "pieces"]
Pair = tuple[str, str]

KINDS = ("characters", "words", "pieces")
_BEFORE, _BEHIND = re.compile(r"\s+([.,;:!?)\]»”’%])"), re.compile(r"([¿¡(\[«“])\s+")
_JOINER = "\uffed"  # before a piece that does not begin a word
_MERGES, _TWICE = 3000, 2  # of a language, and how often a pair must stand


def join(units: Iterable[str], kind: str) -> str:
    """The text of units; words have spaces between, but marks stand at the words they belong to."""
    if kind == "characters":
        return "".join(units)
    text = " ".join(units).replace(f" {_JOINER}", "").removeprefix(_JOINER)
    return _BEHIND.sub(r"\1", _BEFORE.sub(r"\1", text))


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into units of a kind.

    Attributes:
        kind: of units.
        merges: of pieces, in the order in which they were found, each `left right`.
    """

    kind: Kind
    merges: tuple[str, ...] = ()

    def __call__(self, text: str) -> list[str]:
        if self.kind == "characters":
            return list(text)
        words = words_of(text)
        return words if self.kind == "words" else [p for word in words for p in self._of(word)]

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        pairs = (merge.partition(" ") for merge in self.merges)
        return {(left, right): n for n, (left, _, right) in enumerate(pairs)}

    @cached_property
    def _known(self) -> dict[str, list[str]]:
        return {}

    def _of(self, word: str) -> list[str]:
        """The pieces of a word."""
        if word not in self._known:
            pieces, never = _letters(word), len(self._ranks)
            while len(pieces) > 1:
                best = min(pairwise(pieces), key=lambda pair: self._ranks.get(pair, never))
                if best not in self._ranks:
                    break
                pieces = _merged(pieces, best)
            self._known[word] = pieces
        return self._known[word]


def find_merges(texts: Iterable[str], at_most: int = _MERGES) -> list[str]:
    """The merges of some texts, `left right`, the first found first; equals by their text."""
    pairs = _Pairs(Counter(word for text in texts for word in words_of(text)))
    merges: list[str] = []
    while len(merges) < at_most and (best := pairs.most_frequent()) is not None:
        merges.append(" ".join(best))
        pairs.merge(best)
    return merges


class _Pairs:
    """How often neighbours stand in some words, kept while they are merged."""

    def __init__(self, counted: Counter[str]) -> None:
        self._words, self._counts = [_letters(word) for word in counted], [*counted.values()]
        self._pairs: Counter[Pair] = Counter()
        self._places: dict[Pair, set[int]] = defaultdict(set)
        for n in range(len(self._words)):
            self._count(n, 1)
        self._waiting = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._waiting)

    def _count(self, n: int, sign: int) -> list[Pair]:
        """Adds the pairs of a word, or takes them away; returns them."""
        found = [*pairwise(self._words[n])]
        for pair in found:
            self._pairs[pair] += sign * self._counts[n]
            self._places[pair].add(n)
        return found

    def most_frequent(self) -> Pair | None:
        """The pair that stands most often, if it does so twice."""
        while self._waiting:
            count, pair = heapq.heappop(self._waiting)
            if -count == self._pairs[pair]:  # else it has changed since
                return pair if -count >= _TWICE else None
        return None

    def merge(self, pair: Pair) -> None:
        """Makes each place of a pair one piece."""
        changed: set[Pair] = set()
        for n in self._places.pop(pair):
            changed |= {*self._count(n, -1)}
            self._words[n] = _merged(self._words[n], pair)
            changed |= {*self._count(n, 1)}
        for one in changed - {pair}:
            if self._pairs[one] > 0:
                heapq.heappush(self._waiting, (-self._pairs[one], one))


def _letters(word: str) -> list[str]:
    return [sign if n == 0 else _JOINER + sign for n, sign in enumerate(word)]


def _merged(pieces: Sequence[str], pair: Pair) -> list[str]:
    """Pieces with each place of a pair made one."""
    whole, left = [], 0
    while left < len(pieces):
        together = tuple(pieces[left : left + 2]) == pair
        whole.append(pieces[left] + pieces[left + 1][1:] if together else pieces[left])
        left += 1 + together
    return whole
