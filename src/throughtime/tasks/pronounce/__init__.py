"""Spelling to pronunciation: letters in, the sounds of the CMU Pronouncing Dictionary out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime.tasks.layers import resolve_cell
from throughtime.tasks.picture import Picture, draw_attention
from throughtime.tasks.pronounce.words import (
    ALPHABET,
    Entries,
    Epoch,
    Group,
    Pronunciation,
    group_by_length,
    read_dictionary,
    strip_stress,
    take_side,
)
from throughtime.tasks.recipe import CellRecipe, Recipe
from throughtime.tasks.task import IGNORED, Batch, DiagnosisInput, Example, Score, Task, mean_nats
from throughtime.tasks.translate.model import (
    TeacherForced,
    Translator,
    decode_greedily,
    decode_with_attention,
    shift,
)

_EXAMPLES, _DRAWN = 8, 3
_LETTERS, _SPOKEN = 12, 11  # of the words that a diagnosis looks at; the end counts as a sound


class Pronounce(Task):
    """Learns to say English words: 126 thousand of them, split by word."""

    name = "pronounce"
    options = CellRecipe
    ignores = ("length",)
    item_name = "WORD"
    monitor = "per"  # it moves before the first whole word is right
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"hidden": 128, "steps": 2000, "lr": 4e-3, "dropout": 0.1},
        "full": {
            "layers": 2,
            "hidden": 128,
            "steps": 7000,
            "lr": 4e-3,
            "dropout": 0.2,
            "validate_every": 1000,
        },
    }

    @classmethod
    def settle(cls, recipe: Recipe) -> Recipe:
        return resolve_cell(recipe)

    @cached_property
    def _groups(self) -> list[Group]:
        return group_by_length(take_side(read_dictionary(), "train"), ALPHABET)

    def model(self) -> nn.Module:
        return Translator(self.recipe, len(ALPHABET.letters), len(ALPHABET.sounds) + 2)

    def epoch(self, number: int) -> Sequence[Batch]:
        return Epoch(self._groups, self.recipe.batch_size, self.recipe.seed, number)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy a sound; a batch that is not full weighs by the words it has."""
        letters, sounds = batch
        loss = self._distance(model(letters, shift(sounds)), sounds)
        return loss * (sounds.shape[1] / self.recipe.batch_size)

    @property
    def row_axes(self) -> tuple[int, ...]:
        return 1, 1

    def weight(self, batch: Batch) -> float:
        """Its sounds a word: the loss is a mean over sounds that weighs by words."""
        sounds = batch[1]
        return int((sounds != IGNORED).sum()) / max(1, sounds.shape[1])

    def _distance(self, logits: Tensor, sounds: Tensor) -> Tensor:
        return mean_nats(logits, sounds, self.recipe.smoothing)

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        """Words of twelve letters and ten sounds, which need no padding."""
        assert isinstance(model, Translator)
        pairs: list[tuple[Tensor, Tensor]] = []
        for letters, sounds in self.epoch(0):
            rows_chosen = ((sounds != IGNORED).sum(0) == _SPOKEN).nonzero().flatten()[:rows]
            if len(letters) == _LETTERS and len(rows_chosen) and len(pairs) < batches:
                spoken = sounds[:_SPOKEN, rows_chosen]
                pairs.append((torch.cat([letters[:, rows_chosen], shift(spoken)]), spoken))
        return DiagnosisInput(TeacherForced(model, _LETTERS), pairs, self._distance)

    def score(self, model: nn.Module, split: str) -> Score:
        listed = _read_side(split)
        answers = self._answers(model, list(listed))
        rule = f"{RULE}; wer, per: without stress marks; wer_stress, per_stress: with them"
        where = f"{split}: {len(listed)} words kept out of training, split by hash of the word"
        return Score(
            where, rule, len(listed), error_rates(answers, listed), _make_examples(answers)
        )

    def chance(self, split: str) -> dict[str, float]:
        """Of the answer that is right most often, given to every word unseen."""
        counted = Counter(one for listed in _read_side("train").values() for one in set(listed))
        always = max(counted, key=lambda one: (counted[one], one))
        return error_rates(dict.fromkeys(_read_side(split), always), _read_side(split))

    def pictures(self, model: nn.Module) -> list[Picture]:
        """Where it looks as it says some words of the test part."""
        assert isinstance(model, Translator)
        looks = []
        for word in _pick_words(_read_side("test"))[:_DRAWN]:
            numbers, weights = decode_with_attention(model, torch.tensor(ALPHABET.read(word)))
            sounds = [*ALPHABET.write(numbers), "end"][: len(numbers)]
            looks.append((word, sounds, weights))
        return [draw_attention(looks, "letters read", "sounds said")]

    def answer(self, model: nn.Module, items: Sequence[str]) -> list[str]:
        words = [item.lower() for item in items]
        answers = self._answers(model, words)
        return [" ".join(answers[word]) for word in words]

    def check_item(self, item: str) -> None:
        ALPHABET.read(item)

    def _answers(self, model: nn.Module, words: Sequence[str]) -> dict[str, Pronunciation]:
        assert isinstance(model, Translator)
        return pronounce(model, words)


@cache
def _read_side(name: str) -> dict[str, tuple[Pronunciation, ...]]:
    return take_side(read_dictionary(), name)


def _make_examples(answers: Mapping[str, Pronunciation]) -> tuple[Example, ...]:
    """Words at even distances through the split, so that they are the same in every run."""
    return tuple(_make_example(word, answers[word]) for word in _pick_words(answers))


def _pick_words(words: Iterable[str]) -> list[str]:
    """Some words at even distances."""
    every = sorted(words)
    return every[:: max(1, len(every) // _EXAMPLES)][:_EXAMPLES]


def _make_example(word: str, answer: Pronunciation) -> Example:
    listed = read_dictionary()[word]
    right = strip_stress(answer) in [strip_stress(one) for one in listed]
    return Example(word, " ".join(answer), " or ".join(map(" ".join, listed)), right)


RULE = (
    "WER: share of words whose answer equals none of the listed pronunciations; "
    "PER: edits to the closest listed pronunciation over its sounds"
)


def error_rates(answers: Mapping[str, Pronunciation], listed: Entries) -> dict[str, float]:
    """WER and PER of answers, with stress marks and without, as shares.

    wer = words whose answer is not listed / words
    per = sum of edits(answer, closest) / sum of len(closest), the closest listed pronunciation
    """
    plain = {word: strip_stress(answer) for word, answer in answers.items()}
    bare = {word: tuple(map(strip_stress, listed[word])) for word in answers}
    return {
        "wer": wer(plain, bare),
        "per": per(plain, bare),
        "wer_stress": wer(answers, listed),
        "per_stress": per(answers, listed),
    }


def wer(answers: Mapping[str, Pronunciation], listed: Entries) -> float:
    """The share of words whose answer equals none of the listed pronunciations."""
    return sum(answer not in listed[word] for word, answer in answers.items()) / len(answers)


def per(answers: Mapping[str, Pronunciation], listed: Entries) -> float:
    """Edits to the closest listed pronunciation, over the sounds of those; shorter ones first."""
    pairs = [_find_closest(answer, listed[word]) for word, answer in answers.items()]
    return sum(edits for edits, _ in pairs) / sum(sounds for _, sounds in pairs)


def _find_closest(answer: Pronunciation, listed: Sequence[Pronunciation]) -> tuple[int, int]:
    if answer in listed:
        return 0, len(answer)
    return min((edit_distance(answer, truth), len(truth)) for truth in listed)


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements that make one sequence the other.

    e[i, j] = min(e[i-1, j] + 1, e[i, j-1] + 1, e[i-1, j-1] + (one[i] != other[j]))
    """
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        above, row = row, [i]
        for j, right in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


_ROWS = 1024  # words decoded side by side


def pronounce(model: Translator, words: Iterable[str]) -> dict[str, Pronunciation]:
    """The model's pronunciation of every word; each word once, in the order given.

    Raises:
        DataError: a word is empty or has a letter the model never saw.
    """
    by_length: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
    answers: dict[str, Pronunciation] = dict.fromkeys(words, ())
    for word in answers:
        by_length[len(word)].append((word, ALPHABET.read(word)))
    for rows in by_length.values():
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            letters = torch.tensor([numbers for _, numbers in part], device="cpu").T.contiguous()
            for (word, _), numbers in zip(
                part, decode_greedily(model, letters).T.tolist(), strict=True
            ):
                answers[word] = ALPHABET.write(numbers)
    return answers
