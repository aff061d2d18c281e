"""The words: letters and sounds as numbers, and the dictionary, read and split by word.

The file beside this one is the dictionary as its authors publish it (a word, then the sounds it is
made of, in ARPAbet with stress marks 0, 1, 2 on vowels), compressed. A further pronunciation of
`word` is listed as `word(2)`; what follows `#` is a comment.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from throughtime.errors import DataError
from throughtime.tasks.recipe import one_of
from throughtime.tasks.translate.model import END, START

LONGEST = 100  # letters of a word that is asked; the dictionary's longest has 28

# ARPAbet: consonants as they are, every vowel with each of its stress marks.
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_STRESSED = [vowel + mark for vowel in _VOWELS for mark in "012"]


@dataclass(frozen=True)
class Alphabet:
    """The letters and sounds of the dictionary; a number each, sounds after END and START."""

    letters: tuple[str, ...]
    sounds: tuple[str, ...]

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
def dictionary() -> Entries:
    """Every word of the embedded dictionary with its pronunciations, in the file's order."""
    packed = (files(__package__) / "data" / "cmudict.dict.xz").read_bytes()
    return parse(lzma.decompress(packed).decode("utf-8").splitlines())


def parse(lines: Iterable[str]) -> Entries:
    """Words with their pronunciations, first listed first, each once.

    Raises:
        DataError: a line has a word and no sounds.
    """
    found: dict[str, dict[Pronunciation, None]] = {}
    for number, line in enumerate(lines, start=1):
        entry, *sounds = line.partition("#")[0].split() or [""]
        if not entry:
            continue
        if not sounds:
            raise DataError(f"line {number} must be a word and its sounds, got {line!r}")
        found.setdefault(_word(entry), {})[tuple(sounds)] = None
    return {word: tuple(listed) for word, listed in found.items()}


def _word(entry: str) -> str:
    """`word` for `word` and for `word(2)`."""
    return entry.partition("(")[0] if entry.endswith(")") else entry


def side(word: str) -> str:
    """The side of the split a word belongs to: a function of its letters and of nothing else."""
    digest = hashlib.sha256(word.encode("utf-8")).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    return "test" if place in _TEST else "validation" if place in _VALIDATION else "train"


def split(entries: Entries, wanted: str) -> Entries:
    """The words of one side, all pronunciations of a word with it."""
    one_of("split", wanted, SIDES)
    return {word: listed for word, listed in entries.items() if side(word) == wanted}


def without_stress(sounds: Pronunciation) -> Pronunciation:
    """The sounds with the stress marks of their vowels taken off: `AH0` becomes `AH`."""
    return tuple(sound.rstrip("012") for sound in sounds)
