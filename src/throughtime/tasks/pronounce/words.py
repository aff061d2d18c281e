"""The words: the dictionary, read and split by word, letters and sounds as numbers, batches.

The file in `data/` is the dictionary as its authors publish it (a word, then the sounds it is
made of, in ARPAbet with stress marks 0, 1, 2 on vowels), compressed. A further pronunciation of
`word` is listed as `word(2)`; what follows `#` is a comment.

Words of one length need no padding, so the encoder runs without lengths; sounds are padded at the
end, where a forward recurrence cannot see it and the loss does not look.
"""

from __future__ import annotations

import hashlib
import lzma
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.tasks.recipe import one_of
from throughtime.tasks.task import IGNORED, Batch, BuiltWhenIndexed, deal_batches, generator_of
from throughtime.tasks.translate.model import END, START

LONGEST = 100  # letters of a word that is answered; the dictionary's longest has 28

# ARPAbet: consonants as they are, every vowel with each of its stress marks.
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_STRESSED = [vowel + mark for vowel in _VOWELS for mark in "012"]


@dataclass(frozen=True)
class Alphabet:
    """The letters and sounds of the dictionary; a number each, sounds after END and START."""

    letters: tuple[str, ...]
    sounds: tuple[str, ...]

    @cached_property
    def _letters(self) -> dict[str, int]:
        return {letter: number for number, letter in enumerate(self.letters)}

    @cached_property
    def _sounds(self) -> dict[str, int]:
        return {sound: number for number, sound in enumerate(self.sounds, start=START + 1)}

    def read(self, word: str) -> list[int]:
        """The letters of a word as numbers.

        Raises:
            DataError: the word is empty, too long or has a letter the model never saw.
        """
        if not word:
            raise DataError("a word must have at least one letter, got ''; leave it out")
        if len(word) > LONGEST:
            raise DataError(
                f"a word must have at most {LONGEST} letters, and {word[:20]!r}... has {len(word)}"
            )
        unknown = [letter for letter in word.lower() if letter not in self._letters]
        if unknown:
            raise DataError(
                f"a word must be spelled with the letters {''.join(self.letters)}, "
                f"got {unknown[0]!r} in {word!r}; spell it without that letter"
            )
        return [self._letters[letter] for letter in word.lower()]

    def write(self, numbers: Iterable[int]) -> Pronunciation:
        """The sounds of numbers, up to the first END; START, which is no sound, is `?`."""
        sounds = []
        for number in numbers:
            if number == END:
                break
            sounds.append("?" if number == START else self.sounds[number - START - 1])
        return tuple(sounds)

    def encode(self, sounds: Pronunciation) -> list[int]:
        """The sounds as numbers, followed by END."""
        return [*map(self._sounds.__getitem__, sounds), END]


ALPHABET = Alphabet(
    letters=tuple("'-.abcdefghijklmnopqrstuvwxyz"),
    sounds=tuple(sorted([*_CONSONANTS, *_STRESSED])),
)


Pronunciation = tuple[str, ...]
Entries = dict[str, tuple[Pronunciation, ...]]

# Of 100 words by their hash: which side takes which.
_TEST, _VALIDATION = range(10), range(10, 12)
SIDES = ("train", "validation", "test")


@cache
def read_dictionary() -> Entries:
    """Every word of the embedded dictionary with its pronunciations, in the file's order."""
    packed = (files(__package__) / "data" / "cmudict.dict.xz").read_bytes()
    return parse_dictionary(lzma.decompress(packed).decode("utf-8").splitlines())


def parse_dictionary(lines: Iterable[str]) -> Entries:
    """Words with their pronunciations, first listed first, each once.

    Raises:
        DataError: a line has a word and no sounds.
    """
    entries: dict[str, dict[Pronunciation, None]] = {}
    for number, line in enumerate(lines, start=1):
        entry, *sounds = line.partition("#")[0].split() or [""]
        if not entry:
            continue
        if not sounds:
            raise DataError(f"line {number} must be a word and its sounds, got {line!r}")
        entries.setdefault(_strip_number(entry), {})[tuple(sounds)] = None
    return {word: tuple(listed) for word, listed in entries.items()}


def _strip_number(entry: str) -> str:
    """`word` for `word` and for `word(2)`."""
    return entry.partition("(")[0] if entry.endswith(")") else entry


def choose_side(word: str) -> str:
    """The side of the split a word belongs to: a function of its letters and of nothing else."""
    digest = hashlib.sha256(word.encode("utf-8")).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    return "test" if place in _TEST else "validation" if place in _VALIDATION else "train"


def take_side(entries: Entries, wanted: str) -> Entries:
    """The words of one side, all pronunciations of a word with it."""
    one_of("split", wanted, SIDES)
    return {word: listed for word, listed in entries.items() if choose_side(word) == wanted}


def strip_stress(sounds: Pronunciation) -> Pronunciation:
    """The sounds with the stress marks of their vowels taken off: `AH0` becomes `AH`."""
    return tuple(sound.rstrip("012") for sound in sounds)


@dataclass(frozen=True)
class Group:
    """All pronunciations of the words with one number of letters."""

    letters: Tensor  # (N, T)
    sounds: Tensor  # (N, S), END after the last sound, IGNORED after that
    lengths: Tensor  # (N,) sounds with their END


def group_by_length(entries: Entries, symbols: Alphabet) -> list[Group]:
    """Every pronunciation of every word, grouped by the word's number of letters."""
    by_length: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    for word, listed in entries.items():
        letters = symbols.read(word)
        by_length[len(word)] += [(letters, symbols.encode(sounds)) for sounds in listed]
    return [_make_group(by_length[length]) for length in sorted(by_length)]


def _make_group(rows: list[tuple[list[int], list[int]]]) -> Group:
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
            for rows in deal_batches(group.lengths, batch_size, generator)
        ]
        order = torch.randperm(len(plan), generator=generator, device="cpu").tolist()
        self._plan = [plan[place] for place in order]

    def __len__(self) -> int:
        return len(self._plan)

    def build(self, place: int) -> Batch:
        group, rows = self._plan[place]
        longest = int(group.lengths[rows].max())
        return group.letters[rows].T.contiguous(), group.sounds[rows, :longest].T.contiguous()
