"""The letters and the sounds, a number each: written down, so that no answer needs the words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from throughtime.errors import DataError
from throughtime.tasks.pronounce.words import Pronunciation

END = 0  # closes a pronunciation
START = 1  # what the decoder is given first
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
