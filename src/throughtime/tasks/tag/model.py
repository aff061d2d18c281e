"""The model, recurrent layers over words and their characters; the baselines; the figures.

    c_i = [f_n, b_1]                      a word's characters, read both ways; last states
    x_i = [E w_i, c_i]                    E is zero for words that training had not
    y = layers of the cell over x         both ways
    logits_i = W y_i + b

In training a word in ten is read by its characters alone, so that unknown ones are no surprise.

Source: Lample, Ballesteros, Subramanian, Kawakami and Dyer, Neural Architectures for Named Entity
Recognition (2016), without its conditional random field.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from throughtime.tasks.layers import make_layers
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.tag.sentences import PADDING, UNKNOWN, TagFacts
from throughtime.tasks.task import IGNORED

_BEGIN, _END = 8, 16  # characters of a longer word that are read
_ALONE = 0.1  # share of words read by their characters alone, in training


@dataclass(frozen=True)
class Numbered:
    """Sentences as numbers.

    Attributes:
        kinds: (K, 1 + C) each different token: its word's number, its characters'; row 0 is none.
        tokens: of each sentence, rows of `kinds`.
        truth: of each sentence, its labels.
    """

    kinds: Tensor
    tokens: list[Tensor]
    truth: list[Tensor]

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens (T, B, 1 + C), zero after a sentence's end, and labels (T, B), IGNORED there."""
        places = pad_sequence([self.tokens[n] for n in rows])
        truth = pad_sequence([self.truth[n] for n in rows], padding_value=IGNORED)
        return self.kinds[places], truth


def encode(tokens: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], facts: TagFacts
           ) -> Numbered:  # fmt: skip
    """Sentences as numbers; labels that training had not, and "", are IGNORED."""
    places: dict[str, int] = {}
    for token in (token for one in tokens for token in one):
        places.setdefault(token, len(places) + 1)
    rows = [_encode_token(token, facts) for token in places]
    width = max(map(len, rows), default=2)
    padded = [[PADDING] * width, *(row + [PADDING] * (width - len(row)) for row in rows)]
    number = {label: n for n, label in enumerate(facts.labels)}
    return Numbered(
        torch.tensor(padded),
        [torch.tensor([places[token] for token in one]) for one in tokens],
        [torch.tensor([number.get(label, IGNORED) for label in one]) for one in labels],
    )


def _encode_token(token: str, facts: TagFacts) -> list[int]:
    signs = token if len(token) <= _BEGIN + _END else token[:_BEGIN] + token[-_END:]
    word = facts.word_numbers.number(token.casefold())
    return [word, *(facts.character_numbers.number(sign) for sign in signs)]


class Tagger(nn.Module):
    """Tokens (T, B, 1 + C) to logits (T, B, labels).

    Args:
        recipe: cell, directions, merge, layers, hidden, dropout and start; words and what
            their characters say are as wide as a direction.
        facts: words, characters and labels.
    """

    def __init__(self, recipe: Recipe, facts: TagFacts) -> None:
        super().__init__()
        width = max(1, recipe.hidden // 2)
        self.dropout = nn.Dropout(recipe.dropout)
        self.words = nn.Embedding(len(facts.word_numbers), recipe.hidden)
        # So small that a rare word begins as an unknown one.
        nn.init.normal_(self.words.weight, std=recipe.hidden**-0.5)
        self.characters = nn.Embedding(len(facts.character_numbers), width)
        narrow = replace(recipe, hidden=width, layers=1, directions=2, merge="concat")
        self.speller = make_layers(narrow, width)
        spelled = 2 * self.speller.cell.widths(width)[0]
        self.layers = make_layers(recipe, recipe.hidden + spelled)
        self.readout = nn.Linear(self.layers.output_size, len(facts.labels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; those after a sentence's end mean nothing."""
        words, spelled = tokens[..., 0], tokens[..., 1:]
        lengths = (words != PADDING).sum(0)
        known = words > UNKNOWN
        if self.training:
            known = known & (torch.rand(words.shape) >= _ALONE)
        x = torch.cat([self.words(words) * known[..., None], self._spelled(spelled)], -1)
        out, _ = self.layers(self.dropout(x), lengths=lengths)
        logits: Tensor = self.readout(self.dropout(out))
        return logits

    def _spelled(self, signs: Tensor) -> Tensor:
        """What the characters (T, B, C) of each token say, (T, B, 2 W); each kind is read once."""
        kinds, places = signs.flatten(0, 1).unique(dim=0, return_inverse=True)
        lengths = (kinds != PADDING).sum(1)
        longest = max(1, int(lengths.max()))
        x = self.dropout(self.characters(kinds[:, :longest].T))
        _, state = self.speller(x, lengths=lengths)
        last = torch.cat([*state[0][0]], -1)
        encoded: Tensor = last[places].unflatten(0, signs.shape[:2])
        return encoded


_LONGEST, _PRIOR = 5, 0.1  # letters of a suffix; weight of the labels' own shares
RULE = (
    "accuracy: share of right labels; macro_f1: mean F1 of the labels; unseen_accuracy: of the "
    "words that training had not; nats: cross entropy"
)


class Counts:
    """How often each word and suffix of the training part has each label.

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
    predicted = logits.argmax(-1)
    right = (predicted == truth).double()
    figures = {"accuracy": float(right.mean()), "macro_f1": compute_macro_f1(predicted, truth)}
    if bool(unseen.any()):
        figures["unseen_accuracy"] = float(right[unseen].mean())
    return figures | {"nats": float(cross_entropy(logits.double(), truth))}


def compute_macro_f1(predicted: Tensor, truth: Tensor) -> float:
    """Mean of 2 hits / (answered + true) over the labels that are answered or true."""
    labels = torch.cat([predicted, truth]).unique().tolist()
    both = [int(((predicted == n) & (truth == n)).sum()) for n in labels]
    either = [int((predicted == n).sum() + (truth == n).sum()) for n in labels]
    return math.fsum(2 * b / e for b, e in zip(both, either, strict=True)) / len(labels)
