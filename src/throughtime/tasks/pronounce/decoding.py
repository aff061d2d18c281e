"""Greedy decoding: the likeliest sound, step by step, whole batches at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from throughtime.tasks.pronounce.alphabet import ALPHABET, END, START
from throughtime.tasks.pronounce.model import Speller
from throughtime.tasks.pronounce.words import Pronunciation

_ROWS = 1024  # words decoded side by side


def pronounce(model: Speller, words: Iterable[str]) -> dict[str, Pronunciation]:
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
            letters = torch.tensor([numbers for _, numbers in part]).T.contiguous()
            for (word, _), numbers in zip(part, greedy(model, letters).T.tolist(), strict=True):
                answers[word] = ALPHABET.write(numbers)
    return answers


@torch.no_grad()
def greedy(model: Speller, letters: Tensor) -> Tensor:
    """The likeliest sounds (S, B) behind letters (T, B); what follows a word's END means nothing.

    Stops when every word has its END, or after 2 T + 8 sounds, more than any word has.
    """
    training = model.training
    model.eval()
    memory, state = model.encode(letters)
    given = torch.full((1, letters.shape[1]), START)
    done = torch.zeros(letters.shape[1], dtype=torch.bool)
    said = []
    for _ in range(2 * len(letters) + 8):
        logits, state = model.decode(given, memory, state)
        given = logits.argmax(-1)
        said.append(given)
        done |= given[0] == END
        if done.all():
            break
    model.train(training)
    return torch.cat(said)
