"""Unigram to 5-gram: what comes next by counts, interpolated after Kneser and Ney.

    p_k(w | c) = max(n(c w) - d, 0) / n(c .) + b(c) p_{k-1}(w | c'),      p_0(w) = 1 / V
    b(c) = sum over w of min(d, n(c w)) / n(c .)

c are the k - 1 units before, c' is c without its first. In the longest n counts what stands in the
text; below, in how many different units' company c w stands. d is one of three for each length, by
whether n is 1, 2 or more, from how many counts are 1, 2, 3 and 4.

Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling (1999),
section 3, interpolated modified Kneser-Ney.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
Real = NDArray[np.float64]
LONGEST = 5


@dataclass(frozen=True)
class _Level:
    """The sequences of k units that stand in the training text.

    Attributes:
        keys: sorted; number of the first k - 1 units' sequence times V, plus the last unit.
        text: how often each stands in the text.
        company: before how many different units each stands.
    """

    keys: Whole
    text: Real
    company: Real


class Grams:
    """Counts of all sequences of up to five units in a training text.

    Args:
        numbers: (N,) of its units.
        size: V, how many units there are.
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
                self.levels[-1] = _Level(
                    self.levels[-1].keys, self.levels[-1].text, company.astype(np.float64)
                )
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
            found = self._place(k, contexts, numbers)
            contexts = np.full(len(numbers), -1, np.int64)
            contexts[1:] = found[:-1]
        return np.asarray(-np.log2(shares))

    def _mixed(self, k: int, counted: str, contexts: Whole, numbers: Whole, below: Real) -> Real:
        """The share of each unit behind its context, where that stands in the training text."""
        counts = getattr(self.levels[k], counted)
        totals, taken, discounts = self._sums[k][counted]
        place = self._place(k, contexts, numbers)
        count = np.where(place >= 0, counts[place], 0.0)
        cut = np.where(count > 0, discounts[np.minimum(count, 3).astype(int)], 0.0)
        inside = np.maximum(contexts, 0)
        total = totals[inside]
        mixed = (count - np.minimum(cut, count) + taken[inside] * below) / np.maximum(total, 1)
        return np.asarray(np.where((contexts >= 0) & (total > 0), mixed, below))

    def _place(self, k: int, contexts: Whole, numbers: Whole) -> Whole:
        """The number of each sequence of k + 1 units; -1 where the training text has it not."""
        keys, wanted = self.levels[k].keys, contexts * self.size + numbers
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((keys[at] == wanted) & (contexts >= 0), at, -1)

    def _summed(self, k: int, counted: str) -> tuple[Real, Real, Real]:
        """Of each context, over the units behind it: counts, what is cut off; and d of 0 to 3."""
        level = self.levels[k]
        counts: Real = getattr(level, counted)
        discounts = _discounts(counts)
        if not len(counts):
            return np.zeros(1), np.zeros(1), discounts
        contexts = level.keys // self.size
        size = len(self.levels[k - 1].keys) if k else 1
        cut = np.minimum(discounts[np.minimum(counts, 3).astype(int)], counts)
        totals, taken = (np.bincount(contexts, n, minlength=size).astype(np.float64)
                         for n in (counts, cut))  # fmt: skip
        return totals, taken, discounts


def _discounts(counts: Real) -> Real:
    """d of a count of 0, 1, 2, and 3 or more; 1/2 where the counts of counts tell none."""
    often = [float((counts == n).sum()) for n in (1, 2, 3, 4)]
    if min(often) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = often[0] / (often[0] + 2 * often[1])
    found = [n - (n + 1) * y * often[n] / often[n - 1] for n in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.05), float(n)) for n, d in enumerate(found, start=1))])
