"""The facts in a file for tags: sentences, sides, and what training knows of words and labels.

A file made here too, so that the task runs with none.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from throughtime.errors import DataError
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.task import (
    BUILTIN,
    check_sides,
    hash_data,
    most_frequent,
    split_by_key,
)
from throughtime.tasks.tag.sentences import (
    Sentences,
    TagFacts,
    TagRecipe,
    find_columns,
    list_sentences,
    read_tokens,
)

_WORDS, _CHARACTERS = 20_000, 500
_FEWEST = 10  # different sentences
_SHOWN = 20  # labels

Sides = dict[str, list[int]]


def read_source(recipe: TagRecipe) -> DataTable:
    return make_tagged() if recipe.data == BUILTIN else read_tokens(recipe.data, recipe)


def find_tags(recipe: TagRecipe) -> TagFacts:
    """The facts in the file of a recipe.

    Raises:
        DataError: the file cannot be learned from; names file, row and column.
    """
    table = read_source(recipe)
    token, label, series, group = find_columns(table, recipe)
    facts = TagFacts(
        digest=hash_data(recipe.data), token=token, label=label, series=series, group=group
    )
    sentences = list_sentences(table, facts, labelled=True)
    counted = Counter(mark for marks in sentences.labels for mark in marks)
    if len(counted) < 2:
        raise DataError(
            f"column {label} of {table.name} must hold two labels or more, and it holds "
            f"{shorten(next(iter(counted)))} alone, from {table.place(0)} on"
        )
    different = len({" ".join(tokens) for tokens in sentences.tokens})
    if different < _FEWEST:
        raise DataError(
            f"{table.name} must hold at least {_FEWEST} different sentences, some for each part, "
            f"and it holds {different}, told apart by {series or 'the signs . ! ?'}; name the "
            "column that tells them apart with --series, or add some"
        )
    sides, note = split_sentences(sentences, table, facts)
    tokens = sentences.of(sides["train"]).words
    return replace(
        facts,
        words=most_frequent((token.casefold() for token in tokens), _WORDS),
        characters=most_frequent((sign for token in tokens for sign in token), _CHARACTERS),
        labels=sorted(counted),
        read=_describe(facts, table, sentences, sides, note),
    )


def shorten(text: str) -> str:
    """A label as a sentence shows it."""
    return text if len(text) <= 40 else f"{text[:40]}..."


def split_sentences(sentences: Sentences, table: DataTable, facts: TagFacts) -> tuple[Sides, str]:
    """The sentences of each side, and what was moved or left out, in words.

    Without groups, equal sentences are on one side, and those with a label that training would
    lack are trained on. With groups, training leaves out the sentences that are held out too.

    Raises:
        DataError: a side is empty, or training lacks a label.
    """
    texts = ["\0".join(tokens) for tokens in sentences.tokens]
    if not facts.group:
        sides = split_by_key(texts)
        known = _list_labels(sentences, sides["train"])
        rare = {
            n for s in ("validation", "test") for n in sides[s] if {*sentences.labels[n]} - known
        }
        moved = {texts[n] for n in rare}
        every, trained_on = range(len(texts)), {*sides["train"]}
        sides = {
            "train": [n for n in every if texts[n] in moved or n in trained_on],
            **{s: [n for n in sides[s] if texts[n] not in moved] for s in ("validation", "test")},
        }
        note = f"{len(rare)} sentences moved to training, which lacked a label" if rare else ""
    else:
        sides = split_by_key(sentences.groups, [len(tokens) for tokens in sentences.tokens])
        held_out = {texts[n] for s in ("validation", "test") for n in sides[s]}
        twice = {n for n in sides["train"] if texts[n] in held_out}
        sides["train"] = [n for n in sides["train"] if n not in twice]
        note = f"{len(twice)} sentences that are held out left out of training" if twice else ""
    _check_sides(sides, sentences, table, facts)
    return sides, note


def _list_labels(sentences: Sentences, numbers: list[int]) -> set[str]:
    return {mark for n in numbers for mark in sentences.labels[n]}


def _check_sides(sides: Sides, sentences: Sentences, table: DataTable, facts: TagFacts) -> None:
    by = f"split by {facts.group or 'sentence'}; add sentences, or name another --group"
    check_sides(sides, "sentences", table, by)
    held_out = [*sides["validation"], *sides["test"]]
    check_labels(sentences, held_out, _list_labels(sentences, sides["train"]), table, facts)


def check_labels(
    sentences: Sentences, numbers: Iterable[int], known: set[str], table: DataTable, facts: TagFacts
) -> None:
    """Raises DataError where a sentence has a label that training had not; names its row."""
    for n in numbers:
        for mark, row in zip(sentences.labels[n], sentences.rows[n], strict=True):
            if mark not in known:
                raise DataError(
                    f"a label must stand in the training part, and {shorten(mark)} of column "
                    f"{facts.label} in {table.place(row)} does not; add some, or name another "
                    "--group"
                )


def _describe(
    facts: TagFacts, table: DataTable, sentences: Sentences, sides: Sides, note: str
) -> list[list[str]]:
    count = Counter(mark for marks in sentences.labels for mark in marks)
    labels = [f"{shorten(name)} {n}" for name, n in count.most_common(_SHOWN)]
    lengths = [len(tokens) for tokens in sentences.tokens]
    in_lists = table.unit == "line" and sentences.rows[0][0] == sentences.rows[0][-1]
    apart = facts.series or ("in lists" if in_lists else "a new one after . ! ?")
    by = f"split by {facts.group}" if facts.group else "split by hash"
    parts = ", ".join(f"{side} {len(numbers)}" for side, numbers in sides.items())
    more = f" and {len(count) - _SHOWN} more" if len(count) > _SHOWN else ""
    rows = [
        ["file", f"{table.name}: {table.form}, {sum(lengths)} tokens"],
        ["columns", f"tokens {facts.token}, labels {facts.label}"],
        ["sentences", f"{len(lengths)} of {min(lengths)} to {max(lengths)} tokens, {apart}"],
        ["labels", f"{len(count)}: {', '.join(labels)}{more}"],
        [by, parts],
    ]
    return [*rows, ["left out" if "left" in note else "moved", note]] if note else rows


_SUFFIX, _PRIOR = 5, 0.1  # letters of a suffix; weight of the labels' own shares
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
                for n in range(1, _SUFFIX + 1):
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
        ends = (token.casefold()[-n:] for n in range(_SUFFIX, 0, -1))
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


_SENTENCES = 1500
_BOTH = "walk plan dance drink watch paint hope step race cook guard visit answer".split()
_NOUNS = "garden teacher river window child letter friend house bird road market".split()
_VERBS = "see find follow remember carry describe keep love".split()
_ADJECTIVES = "old small quiet green famous clean light open dry slow".split()
_ROOTS = "bal cor dim fen gul har jos kel lom mir nop pel ros sul tav ven wex yor zil".split()
_MADE = {"NOUN": ("ness", "tion", "ment"), "ADJ": ("ous", "ful", "ish"), "ADV": ("ly",)}
_PREPOSITIONS = "in near behind with over".split()

Tagged = list[tuple[str, str]]


def make_tagged() -> DataTable:
    """Sentences of 4 to some 20 tokens with their parts of speech.

    Whether `walk` is a noun or a verb depends on the words around it; the suffixes of rare words
    give their part of speech.
    """
    import polars as pl

    draw = random.Random(7)
    rows = []
    for number in range(_SENTENCES):
        sentence = [*_make_clause(draw), (".", "PUNCT")]
        if draw.random() < 0.3:
            sentence = [*_make_clause(draw), ("that", "SCONJ"), *sentence]
        rows += [(f"s{number:04}", token, tag) for token, tag in sentence]
    frame = pl.DataFrame(rows, schema=["sentence", "token", "upos"], orient="row")
    return DataTable(frame, "builtin", "made here")


def _make_clause(draw: random.Random) -> Tagged:
    subject: Tagged = [(draw.choice(["they", "we", "you"]), "PRON")]
    if draw.random() < 0.5:
        subject = [*_make_noun_phrase(draw)]
    verb = (draw.choice([*_VERBS, *_BOTH]), "VERB")
    helped: Tagged = [("to", "PART"), (draw.choice(_BOTH), "VERB")]
    clause = [*subject, verb, *(helped if draw.random() < 0.2 else _make_noun_phrase(draw))]
    if draw.random() < 0.4:
        clause += [(draw.choice(_PREPOSITIONS), "ADP"), *_make_noun_phrase(draw)]
    if draw.random() < 0.3:
        clause += [(_make_word(draw, "ADV"), "ADV")]
    return clause


def _make_noun_phrase(draw: random.Random) -> Tagged:
    phrase: Tagged = [(draw.choice(["the", "that", "a", "her"]), "DET")]
    if draw.random() < 0.5:
        made = draw.random() < 0.3
        phrase += [(_make_word(draw, "ADJ") if made else draw.choice(_ADJECTIVES), "ADJ")]
    made = draw.random() < 0.3
    return [*phrase, (_make_word(draw, "NOUN") if made else draw.choice([*_NOUNS, *_BOTH]), "NOUN")]


def _make_word(draw: random.Random, kind: str) -> str:
    """A word that nobody knows, with the ending of its kind."""
    return draw.choice(_ROOTS) + draw.choice(["", draw.choice(_ROOTS)]) + draw.choice(_MADE[kind])
