"""Spelling to pronunciation: letters in, the sounds of the CMU Pronouncing Dictionary out.

The file in `data/` is the dictionary as its authors publish it (a word, then the sounds it is
made of, in ARPAbet with stress marks 0, 1, 2 on vowels), compressed. A further pronunciation of
`word` is listed as `word(2)`; what follows `#` is a comment.
"""

from __future__ import annotations

import hashlib
import lzma
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime.errors import DataError
from throughtime.tasks.picture import Picture, draw_attention
from throughtime.tasks.recipe import CellRecipe, Recipe, one_of, resolve_cell
from throughtime.tasks.tables.task import SIDES
from throughtime.tasks.task import IGNORED, Batch, Batches, DiagnosisInput, Example, Score, Task
from throughtime.tasks.translate.model import (
    END,
    START,
    TeacherForced,
    Translator,
    decode_greedily,
    decode_with_attention,
    shift,
)

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
        written = takewhile(lambda number: number != END, numbers)
        return tuple("?" if n == START else self.sounds[n - START - 1] for n in written)

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
        word = entry.partition("(")[0] if entry.endswith(")") else entry  # word(2) is word
        entries.setdefault(word, {})[tuple(sounds)] = None
    return {word: tuple(listed) for word, listed in entries.items()}


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


def list_batches(groups: Sequence[Group], recipe: Recipe, number: int) -> Batches:
    """The batches of one pass, (letters (T, B), sounds (S, B)).

    Words of one length need no padding, so the encoder runs without lengths; sounds are padded at
    the end, where a forward recurrence cannot see it and the loss does not look.
    """

    def build(place: int, rows: Tensor) -> Batch:
        group = groups[place]
        longest = int(group.lengths[rows].max())
        return group.letters[rows].T.contiguous(), group.sounds[rows, :longest].T.contiguous()

    return Batches(build, [group.lengths for group in groups], recipe, number)


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
        "full": {"layers": 2, "hidden": 128, "steps": 7000, "lr": 4e-3, "dropout": 0.2,
                 "validate_every": 1000},
    }  # fmt: skip

    @classmethod
    def settle(cls, recipe: Recipe) -> Recipe:
        return resolve_cell(recipe)

    @cached_property
    def _groups(self) -> list[Group]:
        return group_by_length(take_side(read_dictionary(), "train"), ALPHABET)

    def model(self) -> nn.Module:
        return Translator(self.recipe, len(ALPHABET.letters), len(ALPHABET.sounds) + 2)

    def epoch(self, number: int) -> Sequence[Batch]:
        return list_batches(self._groups, self.recipe, number)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy a sound; a batch that is not full weighs by the words it has."""
        letters, sounds = batch
        loss = self.distance(model(letters, shift(sounds)), sounds)
        return loss * (sounds.shape[1] / self.recipe.batch_size)

    @property
    def row_axes(self) -> tuple[int, ...]:
        return 1, 1

    def weight(self, batch: Batch) -> float:
        """Its sounds a word: the loss is a mean over sounds that weighs by words."""
        sounds = batch[1]
        return int((sounds != IGNORED).sum()) / max(1, sounds.shape[1])

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        """Words of twelve letters and ten sounds, which need no padding."""
        assert isinstance(model, Translator)
        pairs: list[tuple[Tensor, Tensor]] = []
        for letters, sounds in self.epoch(0):
            rows_chosen = ((sounds != IGNORED).sum(0) == _SPOKEN).nonzero().flatten()[:rows]
            if len(letters) == _LETTERS and len(rows_chosen) and len(pairs) < batches:
                spoken = sounds[:_SPOKEN, rows_chosen]
                pairs.append((torch.cat([letters[:, rows_chosen], shift(spoken)]), spoken))
        return DiagnosisInput(TeacherForced(model, _LETTERS), pairs, self.distance)

    def score(self, model: nn.Module, split: str) -> Score:
        listed = _read_side(split)
        answers = pronounce(model, list(listed))
        rule = f"{RULE}; wer, per: without stress marks; wer_stress, per_stress: with them"
        where = f"{split}: {len(listed)} words kept out of training, split by hash of the word"
        examples = tuple(_make_example(word, answers[word]) for word in _pick_words(answers))
        return Score(where, rule, len(listed), error_rates(answers, listed), examples)

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
        answers = pronounce(model, words)
        return [" ".join(answers[word]) for word in words]

    def check_item(self, item: str) -> None:
        ALPHABET.read(item)


@cache
def _read_side(name: str) -> Entries:
    return take_side(read_dictionary(), name)


def _pick_words(words: Iterable[str]) -> list[str]:
    """Words at even distances through the split, so that they are the same in every run."""
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


def pronounce(model: nn.Module, words: Iterable[str]) -> dict[str, Pronunciation]:
    """The model's pronunciation of every word; each word once, in the order given.

    Raises:
        DataError: a word is empty or has a letter the model never saw.
    """
    assert isinstance(model, Translator)
    by_length: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
    answers: dict[str, Pronunciation] = dict.fromkeys(words, ())
    for word in answers:
        by_length[len(word)].append((word, ALPHABET.read(word)))
    for rows in by_length.values():
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            letters = torch.tensor([numbers for _, numbers in part], device="cpu").T.contiguous()
            decoded = decode_greedily(model, letters).T.tolist()
            for (word, _), numbers in zip(part, decoded, strict=True):
                answers[word] = ALPHABET.write(numbers)
    return answers
