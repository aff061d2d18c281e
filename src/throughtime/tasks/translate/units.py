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

Kind = Literal["characters", "words", "pieces"]
Pair = tuple[str, str]

KINDS = ("characters", "words", "pieces")
_WORDS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_BEFORE, _BEHIND = re.compile(r"\s+([.,;:!?)\]»”’%])"), re.compile(r"([¿¡(\[«“])\s+")
_JOINER = "\uffed"  # before a piece that does not begin a word
_MERGES, _TWICE = 3000, 2  # of a language, and how often a pair must stand


def words_of(text: str) -> list[str]:
    """A text in words; marks are words of their own."""
    return _WORDS.findall(text)


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
    counted = Counter(word for text in texts for word in words_of(text))
    words, counts = [_letters(word) for word in counted], [*counted.values()]
    pairs: Counter[Pair] = Counter()
    places: dict[Pair, set[int]] = defaultdict(set)
    for n, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += counts[n]
            places[pair].add(n)
    waiting = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(waiting)
    merges: list[str] = []
    while waiting and len(merges) < at_most:
        count, best = heapq.heappop(waiting)
        if -count != pairs[best]:  # it has changed since
            continue
        if -count < _TWICE:
            break
        merges.append(" ".join(best))
        changed: set[Pair] = set()
        for n in sorted(places.pop(best)):
            old, words[n] = words[n], _merged(words[n], best)
            for sign, pieces in ((-1, old), (1, words[n])):
                for pair in pairwise(pieces):
                    pairs[pair] += sign * counts[n]
                    places[pair].add(n)
                    changed.add(pair)
        for pair in changed - {best}:
            if pairs[pair] > 0:
                heapq.heappush(waiting, (-pairs[pair], pair))
    return merges


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
