"""Tag: a label for each token of the users' own sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from throughtime.tasks.picture import Picture, draw_confusion, probe_layers
from throughtime.tasks.recipe import Recipe, check_unchanged
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.task import TableTask, check_like_training, find_unseen, hash_data
from throughtime.tasks.tables.text import split_words
from throughtime.tasks.tag.find import (
    RULE,
    Counts,
    check_labels,
    find_tags,
    measure,
    read_source,
    split_sentences,
)
from throughtime.tasks.tag.sentences import (
    PADDING,
    UNKNOWN,
    Sentences,
    TagFacts,
    TagRecipe,
    list_sentences,
    read_tokens,
)
from throughtime.tasks.task import (
    IGNORED,
    Batch,
    Batches,
    DiagnosisInput,
    Example,
    Score,
    find_usual_length,
    group_by_length,
    make_layers,
)

if TYPE_CHECKING:
    import polars as pl

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

        c_i = [f_n, b_1]                      a word's characters, read both ways; last states
        x_i = [E w_i, c_i]                    E is zero for words that training had not
        y = layers of the cell over x         both ways
        logits_i = W y_i + b

    In training a word in ten is read by its characters alone, so that unknown ones are no surprise.

    Source: Lample, Ballesteros, Subramanian, Kawakami and Dyer, Neural Architectures for Named
    Entity Recognition (2016), without its conditional random field.

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


_EXAMPLES, _LONGEST = 6, 12  # sentences that are shown, and their tokens
_AT_ONCE = 64
_PROBED, _BATCHES = 2500, 12  # tokens that are probed, and batches of them


class Tag(TableTask[TagRecipe, TagFacts]):
    """Labels each token of your sentences, beside the most frequent tag and suffixes."""

    name = "tag"
    options, facts_kind = TagRecipe, TagFacts
    monitor = "nats"
    higher_is_better = True
    lines = True
    item_name = "'SENTENCE'"
    ignores = ("length",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"hidden": 64, "batch_size": 32, "lr": 4e-3, "steps": 600, "warmup": 50,
                  "validate_every": 100, "dropout": 0.3},
        "full": {"hidden": 128, "batch_size": 32, "lr": 3e-3, "steps": 4000, "warmup": 100,
                 "validate_every": 250, "dropout": 0.3},
    }  # fmt: skip

    @classmethod
    def find_facts(cls, recipe: TagRecipe) -> TagFacts:
        return find_tags(recipe)

    def table(self, path: str) -> DataTable:
        return read_tokens(path, self.recipe)

    @cached_property
    def _sentences(self) -> dict[str, Sentences]:
        """The sentences of each side.

        Raises:
            DataError: the file is another one than when the run began.
        """
        check_unchanged(self.recipe.data, hash_data(self.recipe.data), self.facts.digest)
        table = read_source(self.recipe)
        sentences = list_sentences(table, self.facts, labelled=True)
        sides, _ = split_sentences(sentences, table, self.facts)
        return {side: sentences.of(numbers) for side, numbers in sides.items()}

    @cached_property
    def _items(self) -> dict[str, Numbered]:
        return {s: encode(one.tokens, one.labels, self.facts) for s, one in self._sentences.items()}

    def model(self) -> nn.Module:
        return Tagger(self.recipe, self.facts)

    def epoch(self, number: int) -> Sequence[Batch]:
        """Every training sentence once, in an order that only (seed, number) decides."""
        items = self._items["train"]
        lengths = torch.tensor([len(one) for one in items.tokens])
        return Batches(lambda _, rows: items.batch(rows.tolist()), [lengths], self.recipe, number)

    @property
    def row_axes(self) -> tuple[int, ...]:
        return 1, 1

    def weight(self, batch: Batch) -> float:
        """Its tokens."""
        return int((batch[1] != IGNORED).sum())

    def score(self, model: nn.Module, split: str) -> Score:
        how = f"by {self.facts.group}" if self.facts.group else "by hash of the sentence"
        where = f"kept out of training, split {how}"
        return self._score(model, self._sentences[split], self._items[split], split, where)

    def _score(
        self, model: nn.Module, sentences: Sentences, items: Numbered, name: str, where: str
    ) -> Score:
        logits = answers(model, items)
        figures = measure(torch.cat(logits), torch.cat(items.truth), self._unseen(sentences))
        short = [n for n, one in enumerate(sentences.tokens) if len(one) <= _LONGEST]
        chosen = (short or [0])[:: max(1, len(short) // _EXAMPLES)][:_EXAMPLES]
        examples = []
        for n in chosen:
            predicted = [self.facts.labels[int(k)] for k in logits[n].argmax(-1)]
            tokens, truth = sentences.tokens[n], sentences.labels[n]
            question, answer, right = map(" ".join, (tokens, predicted, truth))
            examples.append(Example(question, answer, right, predicted == truth))
        count = len(sentences.tokens)
        where = f"{name}: {count} sentences, {len(sentences.words)} tokens, {where}"
        return Score(where, RULE, count, figures, (*examples,))

    def _unseen(self, sentences: Sentences) -> Tensor:
        seen = self.facts.word_numbers
        return torch.tensor([token.casefold() not in seen for token in sentences.words])

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Each word's most frequent label, and by suffix for the words that training had not."""
        return self._simple_on(self._sentences[split], self._items[split])

    def _simple_on(self, sentences: Sentences, items: Numbered) -> dict[str, dict[str, float]]:
        counts = self._counts
        guesses = {"most frequent tag": counts.frequent, "and by suffix": counts.by_suffix}
        truth, unseen, tokens = torch.cat(items.truth), self._unseen(sentences), sentences.words
        figures = {}
        for name, guess in guesses.items():
            shares = {token: guess(token) for token in {*tokens}}
            figures[name] = measure(torch.stack([shares[t] for t in tokens]), truth, unseen)
        return figures

    def measure_on(
        self, model: nn.Module, table: DataTable
    ) -> tuple[Score, dict[str, dict[str, float]]]:
        """On the sentences of a table that no training saw."""
        facts = replace(self.facts, group="")
        check_like_training(table, [facts.token, facts.series, facts.label])
        sentences = list_sentences(table, facts, labelled=True)
        check_labels(sentences, range(len(sentences.names)), {*facts.labels}, table, facts)
        trained_on = (self._sentences["train"], self._sentences["validation"])
        old = (tuple(tokens) for side in trained_on for tokens in side.tokens)
        new = find_unseen(table, "sentences", [*map(tuple, sentences.tokens)], old)
        left, sentences = len(sentences.names) - len(new), sentences.of(new)
        items = encode(sentences.tokens, sentences.labels, facts)
        where = f"{left} that the training saw are left out" if left else "none that training saw"
        score = self._score(model, sentences, items, table.name, where)
        score = replace(score, notes=tuple(self._describe_new(sentences.tokens)))
        return score, self._simple_on(sentences, items)

    @cached_property
    def _counts(self) -> Counts:
        truth = [one.tolist() for one in self._items["train"].truth]
        return Counts(self._sentences["train"].tokens, truth, len(self.facts.labels))

    def findings(self, model: nn.Module) -> dict[str, list[dict[str, Any]]]:
        """What a linear read-out of each layer knows of a token, on sentences of the test.

        Of its label, and of its word's class: the label that the word has most often in training.
        Shuffled labels are drawn by word, so that a read-out that memorises words is seen.
        """
        items, sentences = self._items["test"], self._sentences["test"]
        ends = torch.tensor([len(one) for one in items.tokens]).cumsum(0)
        count = max(2, int((ends <= _PROBED).sum()))
        few = range(min(count, len(ends)))
        parts = [[*few[k::_BATCHES]] for k in range(min(_BATCHES, len(few)))]
        seen, guess = self.facts.word_numbers, self._counts.frequent
        classes = [
            torch.tensor([int(guess(t).argmax()) if t.casefold() in seen else -1 for t in one])
            for one in sentences.tokens[:count]
        ]
        inputs = [items.batch(part)[0] for part in parts]
        words = [pad_sequence([items.tokens[n] for n in part]) for part in parts]
        rows = []
        for name, marks in (("label", items.truth), ("word's class", classes)):
            truth = [pad_sequence([marks[n] for n in p], padding_value=-1) for p in parts]
            rows += probe_layers(name, model, inputs, truth, words)
        return {"probe": rows}

    def pictures(self, model: nn.Module) -> list[Picture]:
        """The confusion matrix of the test part."""
        items = self._items["test"]
        predicted = torch.cat(answers(model, items)).argmax(-1)
        return [draw_confusion(predicted, torch.cat(items.truth), self.facts.labels, "labels")]

    def predict(self, model: nn.Module, table: DataTable) -> tuple[pl.DataFrame, list[str]]:
        """The label of each token, and how probable it is."""
        import polars as pl

        check_like_training(table, [self.facts.token, self.facts.series])
        sentences = list_sentences(table, replace(self.facts, group=""), labelled=False)
        predicted = self._label(model, sentences.tokens)
        parts = zip(sentences.names, sentences.tokens, predicted, strict=True)
        rows = [
            (name, token, *mark)
            for name, tokens, marks in parts
            for token, mark in zip(tokens, marks, strict=True)
        ]
        names = [self.facts.series or "sentence", self.facts.token, self.facts.label, "probability"]
        return pl.DataFrame(rows, schema=names, orient="row"), self._describe_new(sentences.tokens)

    def _label(
        self, model: nn.Module, sentences: Sequence[Sequence[str]]
    ) -> list[list[tuple[str, float]]]:
        """Label and probability of each token."""
        items = encode(sentences, [[""] * len(one) for one in sentences], self.facts)
        predicted = []
        for logits in answers(model, items):
            best = logits.double().softmax(-1).max(-1)
            labels = [self.facts.labels[n] for n in best.indices.tolist()]
            predicted.append([*zip(labels, best.values.tolist(), strict=True)])
        return predicted

    def _describe_new(self, sentences: Sequence[Sequence[str]]) -> list[str]:
        """What training had not of some sentences, in words."""
        signs = {sign for one in sentences for token in one for sign in token}
        new = sorted(sign for sign in signs if sign not in self.facts.character_numbers)
        tokens = [token.casefold() for one in sentences for token in one]
        unseen = sum(token not in self.facts.word_numbers for token in tokens)
        notes = [f"{unseen} of {len(tokens)} words are none that training had"] if unseen else []
        if new:
            notes += [f"training had no character {' '.join(new[:20])}"]
        return notes

    def describe_unseen(self, items: Sequence[str]) -> list[str]:
        return self._describe_new([self._tokens(item) for item in items])

    def answer(self, model: nn.Module, items: Sequence[str]) -> list[str]:
        """`the/DET house/NOUN` for each sentence typed."""
        sentences = [self._tokens(item) for item in items]
        predicted = self._label(model, sentences)
        return [
            " ".join(f"{token}/{label}" for token, (label, _) in zip(one, marks, strict=True))
            for one, marks in zip(sentences, predicted, strict=True)
        ]

    def _tokens(self, text: str) -> list[str]:
        """The parts between spaces, cut at marks that training has as tokens of their own."""
        tokens: list[str] = []
        for piece in text.split():
            parts = split_words(piece)
            marks = [part for part in parts if not part[0].isalnum()]
            cut = marks and all(mark in self.facts.word_numbers for mark in marks)
            known = piece.casefold() in self.facts.word_numbers
            tokens += parts if cut and not known else [piece]
        return tokens

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        """Training sentences of the most frequent length, which need no padding."""
        train = self._items["train"]
        longer = [n for n, one in enumerate(train.tokens) if len(one) > 1]
        usual = find_usual_length([len(train.tokens[n]) for n in longer], batches * rows)
        chosen = [longer[n] for n in usual]
        parts = [chosen[k : k + rows] for k in range(0, len(chosen), rows)]
        return DiagnosisInput(model, [train.batch(part) for part in parts], self.distance)


@torch.no_grad()
def answers(model: nn.Module, items: Numbered) -> list[Tensor]:
    """Logits (T, labels) of each sentence, in their order."""
    by_number: dict[int, Tensor] = {}
    for part in group_by_length(items.tokens, _AT_ONCE):
        logits = model(items.batch(part)[0])
        for column, n in enumerate(part):
            by_number[n] = logits[: len(items.tokens[n]), column]
    return [by_number[n] for n in range(len(by_number))]
