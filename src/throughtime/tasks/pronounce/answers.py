"""Answers: greedy decoding, and the error rates they are scored by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch

from throughtime.tasks.pronounce.words import (
    ALPHABET,
    Entries,
    Pronunciation,
    without_stress,
)
from throughtime.tasks.translate.model import Translator
from throughtime.tasks.translate.search import greedy

RULE = (
    "WER: share of words whose answer equals none of the listed pronunciations; "
    "PER: edits to the closest listed pronunciation over its sounds"
)


def rates(answers: Mapping[str, Pronunciation], listed: Entries) -> dict[str, float]:
    """WER and PER of answers, with stress marks and without, as shares.

    wer = words whose answer is not listed / words
    per = sum of edits(answer, closest) / sum of len(closest), the closest listed pronunciation
    """
    plain = {word: without_stress(answer) for word, answer in answers.items()}
    bare = {word: tuple(map(without_stress, listed[word])) for word in answers}
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
    pairs = [_closest(answer, listed[word]) for word, answer in answers.items()]
    return sum(edits for edits, _ in pairs) / sum(sounds for _, sounds in pairs)


def _closest(answer: Pronunciation, listed: Sequence[Pronunciation]) -> tuple[int, int]:
    if answer in listed:
        return 0, len(answer)
    return min((edits(answer, truth), len(truth)) for truth in listed)


def edits(one: Sequence[str], other: Sequence[str]) -> int:
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
            for (word, _), numbers in zip(part, greedy(model, letters).T.tolist(), strict=True):
                answers[word] = ALPHABET.write(numbers)
    return answers
