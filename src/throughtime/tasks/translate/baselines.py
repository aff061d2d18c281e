"""Translations without a net, the source as it is and word by word; and the figures of any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import missing_extra
from throughtime.tasks.tables.text import words_of
from throughtime.tasks.translate.units import join

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

_ROUNDS = 5
_PLACES = 10_000_000  # of a source word beside a target word; what is beyond is not counted
RULE = (
    "chrf: F-score of runs of characters, bleu: of runs of words up to four, both of sacrebleu, of "
    "100; exact: share of targets that are right to the last sign"
)


def measure(said: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """The metrics of some translations.

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    bleu, chrf = _scorers()
    right = sum(one == other for one, other in zip(said, truth, strict=True))
    return {
        "chrf": float(chrf.corpus_score(said, [truth]).score),
        "bleu": float(bleu.corpus_score(said, [truth]).score),
        "exact": right / len(truth),
    }


def _scorers() -> tuple[Metric, Metric]:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise missing_extra("sacrebleu", "data") from error
    return BLEU(), CHRF()


def check_figures() -> None:
    """Raises MissingExtra where a translation could not be measured."""
    _scorers()


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
            left = [0, *(_number(names[0], word) for word in words_of(source))]
            right = [_number(names[1], word) for word in words_of(target)]
            where = np.arange(count, count + len(right))
            sides = (np.tile(left, len(right)), np.repeat(right, len(left)))
            places.append(np.stack([*sides, np.repeat(where, len(left))]).astype(np.int64))
            count, total = count + len(right), total + places[-1].shape[1]
            if total > _PLACES:
                break
        left_words, right_words, where = np.concatenate(places, 1)
        targets_count = max(1, len(names[1]))
        pairs, cell = np.unique(left_words * targets_count + right_words, return_inverse=True)
        shares = _fitted(pairs // targets_count, cell, where)
        words = list(names[1])
        best: dict[int, int] = {}
        for n in np.argsort(shares, kind="stable"):  # the likeliest is the last to be said
            best[int(pairs[n]) // targets_count] = int(pairs[n]) % targets_count
        self._said = {word: words[best[n]] for word, n in names[0].items() if n and n in best}

    def __call__(self, text: str) -> str:
        """A translation."""
        return join([self._said.get(word, word) for word in words_of(text)], "words")


def _number(names: dict[str, int], word: str) -> int:
    return names.setdefault(word, len(names))


def _fitted(source: Numbers, cell: Numbers, where: Numbers) -> Shares:
    """The shares t of each different pair of words, after some rounds of expectation.

    Args:
        source: of each different pair, the source word's number.
        cell: of each place, its pair's number; where: its target's place.
    """
    shares: Shares = np.ones(len(source))
    for _ in range(_ROUNDS):
        there = shares[cell]
        expected = there / np.bincount(where, there)[where]
        counts = np.bincount(cell, expected, minlength=len(source))
        shares = counts / np.bincount(source, counts)[source]
    return shares
