"""Words as numbers, and batches of words that have the same number of letters.

Words of one length need no padding, so the encoder runs without lengths; sounds are padded at the
end, where a forward recurrence cannot see it and the loss does not look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.tasks.passes import BuiltWhenIndexed, generator_of
from throughtime.tasks.pronounce.words import Alphabet, Entries
from throughtime.tasks.task import Batch
from throughtime.tasks.translate.model import END, IGNORED

# Within a window of this many batches, pronunciations are sorted by length: less padding.
_WINDOW = 8


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
    lengths = torch.tensor([len(sounds) for _, sounds in rows], device="cpu")
    longest = int(lengths.max())
    sounds = [numbers + [IGNORED] * (longest - len(numbers)) for _, numbers in rows]
    letters = torch.tensor([letters for letters, _ in rows], device="cpu")
    return Group(letters, torch.tensor(sounds, device="cpu"), lengths)


class Epoch(BuiltWhenIndexed):
    """The batches of one pass in an order that only (seed, number) decides.

    A batch is (letters (T, B), sounds (S, B)); it is built when it is indexed.
    """

    def __init__(self, groups: Sequence[Group], batch_size: int, seed: int, number: int) -> None:
        self._groups = groups
        generator = generator_of(seed, number)
        plan = [
            (group, rows)
            for group in groups
            for rows in _deal(group.lengths, batch_size, generator)
        ]
        order = torch.randperm(len(plan), generator=generator, device="cpu").tolist()
        self._plan = [plan[place] for place in order]

    def __len__(self) -> int:
        return len(self._plan)

    def build(self, place: int) -> Batch:
        group, rows = self._plan[place]
        longest = int(group.lengths[rows].max())
        return group.letters[rows].T.contiguous(), group.sounds[rows, :longest].T.contiguous()


def _deal(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Row numbers, shuffled, sorted by length within windows, cut into batches."""
    batches: list[Tensor] = []
    order = torch.randperm(len(lengths), generator=generator, device="cpu")
    for window in order.split(batch_size * _WINDOW):
        batches += window[torch.argsort(lengths[window], stable=True)].split(batch_size)
    return batches
