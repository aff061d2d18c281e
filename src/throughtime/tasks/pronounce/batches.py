"""Words as numbers, and batches of words that have the same number of letters.

Words of one length need no padding, so the encoder runs without lengths; sounds are padded at the
end, where a forward recurrence cannot see it and the loss does not look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import overload

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.tasks.pronounce.words import Entries, Pronunciation, dictionary
from throughtime.tasks.task import Batch

END = 0  # closes a pronunciation; also what it is padded with
START = 1  # what the decoder is given first
IGNORED = -100  # a target the loss does not look at

# Within a window of this many batches, pronunciations are sorted by length: less padding.
_WINDOW = 8

# 2^32 over the golden ratio: seeds lie far apart, and the passes of one follow each other.
_ODD = 2_654_435_769


@dataclass(frozen=True)
class Alphabet:
    """The letters and sounds of the dictionary; a number each, sounds after END and START."""

    letters: tuple[str, ...]
    sounds: tuple[str, ...]

    def read(self, word: str) -> list[int]:
        """The letters of a word as numbers.

        Raises:
            DataError: the word is empty or has a letter the model never saw.
        """
        if not word:
            raise DataError("a word must have at least one letter, got ''; leave it out")
        unknown = [letter for letter in word.lower() if letter not in self.letters]
        if unknown:
            raise DataError(
                f"a word must be spelled with the letters {''.join(self.letters)}, "
                f"got {unknown[0]!r} in {word!r}; spell it without that letter"
            )
        return [self.letters.index(letter) for letter in word.lower()]

    def write(self, numbers: Iterable[int]) -> Pronunciation:
        """The sounds behind numbers, up to the first END; START, which is no sound, is `?`."""
        sounds = []
        for number in numbers:
            if number == END:
                break
            sounds.append("?" if number == START else self.sounds[number - 2])
        return tuple(sounds)

    def encode(self, sounds: Pronunciation) -> list[int]:
        """The sounds as numbers, END behind them."""
        return [self.sounds.index(sound) + 2 for sound in sounds] + [END]


@cache
def alphabet() -> Alphabet:
    """The letters and sounds that occur in the embedded dictionary, in code-point order."""
    entries = dictionary()
    letters = {letter for word in entries for letter in word}
    sounds = {sound for listed in entries.values() for one in listed for sound in one}
    return Alphabet(tuple(sorted(letters)), tuple(sorted(sounds)))


@dataclass(frozen=True)
class Group:
    """All pronunciations of the words with one number of letters."""

    letters: Tensor  # (N, T)
    sounds: Tensor  # (N, S), END behind the last sound, IGNORED behind that
    lengths: Tensor  # (N,) sounds with their END


def groups(entries: Entries, symbols: Alphabet) -> list[Group]:
    """Every pronunciation of every word, grouped by the word's number of letters."""
    letter = {name: number for number, name in enumerate(symbols.letters)}
    sound = {name: number for number, name in enumerate(symbols.sounds, start=2)}
    found: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    for word, listed in entries.items():
        for sounds in listed:
            row = ([letter[one] for one in word], [*(sound[one] for one in sounds), END])
            found[len(word)].append(row)
    return [_group(found[length]) for length in sorted(found)]


def _group(rows: list[tuple[list[int], list[int]]]) -> Group:
    lengths = torch.tensor([len(sounds) for _, sounds in rows])
    longest = int(lengths.max())
    sounds = [numbers + [IGNORED] * (longest - len(numbers)) for _, numbers in rows]
    return Group(torch.tensor([letters for letters, _ in rows]), torch.tensor(sounds), lengths)


class Epoch(Sequence[Batch]):
    """The batches of one pass in an order that only (seed, number) decides.

    A batch is (letters (T, B), sounds (S, B)); it is built when it is indexed.
    """

    def __init__(self, groups: Sequence[Group], batch_size: int, seed: int, number: int) -> None:
        self._groups = groups
        # torch's generator on the CPU looks at the low 32 bits of a seed only.
        generator = torch.Generator().manual_seed((seed * _ODD + number) % 2**32)
        plan = [
            (group, rows)
            for group in groups
            for rows in _deal(group.lengths, batch_size, generator)
        ]
        order = torch.randperm(len(plan), generator=generator).tolist()
        self._plan = [plan[place] for place in order]

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        group, rows = self._plan[index]
        longest = int(group.lengths[rows].max())
        return group.letters[rows].T.contiguous(), group.sounds[rows, :longest].T.contiguous()


def _deal(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Row numbers, shuffled, sorted by length within windows, cut into batches."""
    batches: list[Tensor] = []
    for window in torch.randperm(len(lengths), generator=generator).split(batch_size * _WINDOW):
        batches += window[torch.argsort(lengths[window], stable=True)].split(batch_size)
    return batches
