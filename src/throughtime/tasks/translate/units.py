"""Units of texts: characters, words and marks, or pieces of words; facts, baselines, figures.

Pieces are learned by byte pair encoding on the training part: its words begin as characters, and
again and again the most frequent pair of neighbours becomes one piece.

Source: Sennrich, Haddow and Birch, Neural Machine Translation of Rare Words with Subword Units
(2016).
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import import_extra
from throughtime.tasks.recipe import option
from throughtime.tasks.tables.task import FileFacts, Vocabulary
from throughtime.tasks.tables.text import TextRecipe, split_words
from throughtime.tasks.translate.model import END, PADDING

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


Kind = Literal["characters", "words", "pieces"]
Pair = tuple[str, str]
_BEFORE, _AFTER = re.compile(r"\s+([.,;:!?)\]»”’%])"), re.compile(r"([¿¡(\[«“])\s+")
_JOINER = "\uffed"  # before a piece that does not begin a word
_MERGES, _TWICE = 3000, 2  # of a language; how often a pair must occur


def join(units: Iterable[str], kind: str) -> str:
    """The text of units; spaces between words, and none before or after marks as they require."""
    if kind == "characters":
        return "".join(units)
    text = " ".join(units).replace(f" {_JOINER}", "").removeprefix(_JOINER)
    return _AFTER.sub(r"\1", _BEFORE.sub(r"\1", text))


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into units of a kind.

    Attributes:
        kind: of units.
        merges: of pieces, in the order in which they were learned, each `left right`.
    """

    kind: Kind
    merges: tuple[str, ...] = ()

    def __call__(self, text: str) -> list[str]:
        if self.kind == "characters":
            return list(text)
        words = split_words(text)
        return words if self.kind == "words" else [p for word in words for p in self._split(word)]

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        pairs = (merge.partition(" ") for merge in self.merges)
        return {(left, right): n for n, (left, _, right) in enumerate(pairs)}

    @cached_property
    def _pieces(self) -> dict[str, list[str]]:
        return {}

    def _split(self, word: str) -> list[str]:
        if word not in self._pieces:
            pieces, never = _split_letters(word), len(self._ranks)
            while len(pieces) > 1:
                best = min(pairwise(pieces), key=lambda pair: self._ranks.get(pair, never))
                if best not in self._ranks:
                    break
                pieces = _merge(pieces, best)
            self._pieces[word] = pieces
        return self._pieces[word]


def find_merges(texts: Iterable[str], at_most: int = _MERGES) -> list[str]:
    """The merges of some texts, `left right`, the first learned first; equals by their text."""
    pairs = _Pairs(Counter(word for text in texts for word in split_words(text)))
    merges: list[str] = []
    while len(merges) < at_most and (best := pairs.most_frequent()) is not None:
        merges.append(" ".join(best))
        pairs.merge(best)
    return merges


class _Pairs:
    """How often neighbours occur in some words, kept up to date as they are merged."""

    def __init__(self, counted: Counter[str]) -> None:
        self._words, self._counts = [_split_letters(word) for word in counted], [*counted.values()]
        self._pairs: Counter[Pair] = Counter()
        self._places: dict[Pair, set[int]] = defaultdict(set)
        for n in range(len(self._words)):
            self._count(n, 1)
        self._waiting = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._waiting)

    def _count(self, n: int, sign: int) -> list[Pair]:
        """Adds the pairs of a word, or takes them away; returns them."""
        neighbours = [*pairwise(self._words[n])]
        for pair in neighbours:
            self._pairs[pair] += sign * self._counts[n]
            self._places[pair].add(n)
        return neighbours

    def most_frequent(self) -> Pair | None:
        """The pair that occurs most often, if it does so twice."""
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
            self._words[n] = _merge(self._words[n], pair)
            changed |= {*self._count(n, 1)}
        for one in changed - {pair}:
            if self._pairs[one] > 0:
                heapq.heappush(self._waiting, (-self._pairs[one], one))


def _split_letters(word: str) -> list[str]:
    return [sign if n == 0 else _JOINER + sign for n, sign in enumerate(word)]


def _merge(pieces: Sequence[str], pair: Pair) -> list[str]:
    """Pieces with each place of a pair made one."""
    whole, left = [], 0
    while left < len(pieces):
        together = tuple(pieces[left : left + 2]) == pair
        whole.append(pieces[left] + pieces[left + 1][1:] if together else pieces[left])
        left += 1 + together
    return whole


UNKNOWN = PADDING + 1  # of sources; targets have END and START there, and UNKNOWN after them


@dataclass(frozen=True, kw_only=True)
class TranslateRecipe(TextRecipe):
    """A recipe with the columns of a table and their roles."""

    task: str = option("translate", "What is learned")
    source: str = option("", "Column to translate from; empty: found")
    target: str = option("", "Column to translate into; empty: found")
    units: Kind = option(
        "characters",
        "What is read and written one by one; pieces: of words",
        choices=get_args(Kind),
    )
    longest: int = option(
        200, "Units of a source or a target, words for pieces; longer pairs are left out and "
        "counted", at_least=1,
    )  # fmt: skip
    beam: int = option(
        4, "Beginnings followed at once when a trained net translates; 1: greedy",
        at_least=1, below=65,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TranslateFacts(FileFacts):
    """The facts in the file.

    Attributes:
        source, target: columns.
        source_units, target_units: of the training part, the most frequent first.
        source_merges, target_merges: of pieces.
    """

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


def join_until_end(numbers: Iterable[int], targets: Vocabulary, kind: str) -> str:
    """The text of numbers, up to the first END; what is no unit is `?`."""
    return join(map(targets.unit, takewhile(lambda number: number != END, numbers)), kind)


_ROUNDS = 5
_PLACES = 10_000_000  # pairs of a source and a target word; what is beyond is not counted
RULE = (
    "chrf: F-score of runs of characters, bleu: of runs of words up to four, both of sacrebleu, of "
    "100; exact: share of targets that are right to the last sign"
)


def measure(answers: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """The metrics of some translations, by sacrebleu, of the extra `data`."""
    bleu, chrf = load_scorers()
    right = sum(one == other for one, other in zip(answers, truth, strict=True))
    return {
        "chrf": float(chrf.corpus_score(answers, [truth]).score),
        "bleu": float(bleu.corpus_score(answers, [truth]).score),
        "exact": right / len(truth),
    }


def load_scorers() -> tuple[Metric, Metric]:
    """BLEU and chrF of sacrebleu; raises MissingExtra where it is not installed."""
    bleu, chrf = (import_extra(f"sacrebleu.metrics.{name}", "data") for name in ("bleu", "chrf"))
    return bleu.BLEU(), chrf.CHRF()


Numbers = NDArray[np.int64]
Shares = NDArray[np.float64]


class Lexicon:
    """Each source word's likeliest target word, in the order of the source; others as they are.

    t(f | e) = sum over pairs of  t(f | e) / sum_e' t(f | e'),  scaled to 1 for each e; the words
    e of a pair's source, and a word that is nothing, explain each f of its target.

    Source: Brown, Della Pietra, Della Pietra and Mercer, The Mathematics of Statistical Machine
    Translation (1993), model 1.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        names: tuple[dict[str, int], dict[str, int]] = ({"": 0}, {})
        places: list[Numbers] = []  # (source word, target word, place in all targets) by its rows
        count = total = 0
        for source, target in zip(sources, targets, strict=True):
            left = [0, *(_number(names[0], word) for word in split_words(source))]
            right = [_number(names[1], word) for word in split_words(target)]
            where = np.arange(count, count + len(right))
            sides = (np.tile(left, len(right)), np.repeat(right, len(left)))
            places.append(np.stack([*sides, np.repeat(where, len(left))]).astype(np.int64))
            count, total = count + len(right), total + places[-1].shape[1]
            if total > _PLACES:
                break
        left_words, right_words, where = np.concatenate(places, 1)
        targets_count = max(1, len(names[1]))
        pairs, cell = np.unique(left_words * targets_count + right_words, return_inverse=True)
        shares = _fit(pairs // targets_count, cell, where)
        words = list(names[1])
        best: dict[int, int] = {}
        for n in np.argsort(shares, kind="stable"):  # the likeliest comes last and stays
            best[int(pairs[n]) // targets_count] = int(pairs[n]) % targets_count
        self._likeliest = {word: words[best[n]] for word, n in names[0].items() if n and n in best}

    def __call__(self, text: str) -> str:
        """A translation."""
        return join([self._likeliest.get(word, word) for word in split_words(text)], "words")


def _number(names: dict[str, int], word: str) -> int:
    return names.setdefault(word, len(names))


def _fit(source: Numbers, cell: Numbers, where: Numbers) -> Shares:
    """The shares t of each different pair of words, after some rounds of expectation.

    Args:
        source: of each different pair, the source word's number.
        cell: of each place, its pair's number; where: its target's place.
    """
    shares: Shares = np.ones(len(source))
    for _ in range(_ROUNDS):
        values = shares[cell]
        expected = values / np.bincount(where, values)[where]
        counts = np.bincount(cell, expected, minlength=len(source))
        shares = counts / np.bincount(source, counts)[source]
    return shares
