"""Tags without a net: each word's most frequent one, and by suffix for unseen words; figures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

_LONGEST, _PRIOR = 5, 0.1  # letters of a suffix; weight of the labels' own shares
RULE = (
    "accuracy: share of right labels; macro_f1: mean F1 of the labels; unseen_accuracy: of the "
    "words that training had not; nats: cross entropy"
)


class Counts:
    """How often each label stands at each word and suffix of the training part.

    Args:
        tokens, truth: of the training sentences, truth as the labels' numbers.
        labels: how many there are.
    """

    def __init__(
        self, tokens: Sequence[Sequence[str]], truth: Sequence[Sequence[int]], labels: int
    ) -> None:
        self.labels = labels
        self._words: dict[str, Counter[int]] = defaultdict(Counter)
        self._suffixes: dict[str, Counter[int]] = defaultdict(Counter)
        every: Counter[int] = Counter()
        for sentence, marks in zip(tokens, truth, strict=True):
            for token, mark in zip(sentence, marks, strict=True):
                every[mark] += 1
                for form in {token, token.casefold()}:
                    self._words[form][mark] += 1
                for n in range(1, _LONGEST + 1):
                    self._suffixes[token.casefold()[-n:]][mark] += 1
        total = sum(every.values())
        self._prior = torch.tensor([(every[n] + 1) / (total + labels) for n in range(labels)])

    def frequent(self, token: str) -> Tensor:
        """Log shares of the labels of a word; of all words where it is unseen."""
        seen = self._words.get(token) or self._words.get(token.casefold())
        return self._shares(seen) if seen else self._prior.log()

    def by_suffix(self, token: str) -> Tensor:
        """The same; of its longest suffix that was seen where it is unseen."""
        if token in self._words or token.casefold() in self._words:
            return self.frequent(token)
        ends = (token.casefold()[-n:] for n in range(_LONGEST, 0, -1))
        seen = next((self._suffixes[end] for end in ends if end in self._suffixes), None)
        return self._shares(seen) if seen else self._prior.log()

    def _shares(self, counted: Counter[int]) -> Tensor:
        counts = torch.tensor([float(counted[n]) for n in range(self.labels)])
        return ((counts + _PRIOR * self._prior) / (counts.sum() + _PRIOR)).log()


def measure(logits: Tensor, truth: Tensor, unseen: Tensor) -> dict[str, float]:
    """The metrics of logits (N, labels); `unseen`: (N,) whether training lacked the word."""
    said = logits.argmax(-1)
    right = (said == truth).double()
    figures = {"accuracy": float(right.mean()), "macro_f1": macro_f1(said, truth)}
    if bool(unseen.any()):
        figures["unseen_accuracy"] = float(right[unseen].mean())
    return figures | {"nats": float(cross_entropy(logits.double(), truth))}


def macro_f1(said: Tensor, truth: Tensor) -> float:
    """Mean over the labels that are said or true of 2 hits / (said + true)."""
    labels = torch.cat([said, truth]).unique().tolist()
    both = [int(((said == n) & (truth == n)).sum()) for n in labels]
    either = [int((said == n).sum() + (truth == n).sum()) for n in labels]
    return math.fsum(2 * b / e for b, e in zip(both, either, strict=True)) / len(labels)
