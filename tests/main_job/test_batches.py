"""Batches: every pronunciation once a pass, words of one length together, order from the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from throughtime.errors import DataError
from throughtime.tasks.pronounce import (
    ALPHABET,
    END,
    IGNORED,
    Entries,
    group_by_length,
    list_batches,
    read_dictionary,
    take_side,
)
from throughtime.tasks.recipe import CellRecipe
from throughtime.tasks.task import Batch

pytestmark = pytest.mark.usefixtures("dictionary_in_small")


def training() -> Entries:
    return take_side(read_dictionary(), "train")


def spelled(epoch: Sequence[Batch]) -> list[tuple[str, tuple[str, ...]]]:
    """Every row of every batch as a word and its sounds, in order."""
    rows = []
    for letters, sounds in epoch:
        for word, one in zip(letters.T.tolist(), sounds.T.tolist(), strict=True):
            rows.append(("".join(ALPHABET.letters[n] for n in word), ALPHABET.write(one)))
    return rows


def test_a_pass_has_every_pronunciation_once() -> None:
    entries = training()
    expected = Counter((word, one) for word, listed in entries.items() for one in listed)
    assert (
        Counter(
            spelled(
                list_batches(
                    group_by_length(entries, ALPHABET), CellRecipe(batch_size=7, seed=0), 3
                )
            )
        )
        == expected
    )


def test_order_is_a_function_of_seed_and_number_alone() -> None:
    entries = training()
    made = group_by_length(entries, ALPHABET)

    def order(seed: int, number: int) -> list[tuple[str, tuple[str, ...]]]:
        torch.manual_seed(torch.seed())  # whatever happened before
        return spelled(list_batches(made, CellRecipe(batch_size=7, seed=seed), number))

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, number)) for seed in range(2) for number in range(2)}) == 4


def test_every_pass_has_the_same_number_of_batches() -> None:
    made = group_by_length(training(), ALPHABET)
    assert (
        len(
            {
                len(list_batches(made, CellRecipe(batch_size=7, seed=seed), number))
                for seed in range(3)
                for number in range(3)
            }
        )
        == 1
    )


def test_a_batch_needs_no_padding_but_behind_its_sounds() -> None:
    entries = training()
    for letters, sounds in list_batches(
        group_by_length(entries, ALPHABET), CellRecipe(batch_size=7, seed=0), 0
    ):
        assert letters.shape[1] == sounds.shape[1] <= 7
        ends = (sounds == END).int()
        assert bool((ends.sum(0) == 1).all())
        behind = ends.cumsum(0).bool() & ~ends.bool()
        assert bool(((sounds == IGNORED) == behind).all())
        assert bool((sounds[-1] != IGNORED).any())


def test_writing_undoes_encoding() -> None:
    entries = training()
    for listed in entries.values():
        for one in listed:
            assert ALPHABET.write([*ALPHABET.encode(one), 5, 6]) == one


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("", "a word must have at least one letter, got ''; leave it out"),
        ("naïve", "a word must be spelled with the letters .*, got 'ï' in 'naïve'; spell it"),
        ("a b", "got ' ' in 'a b'"),
    ],
)
def test_a_word_that_cannot_be_read_is_refused(word: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ALPHABET.read(word)


def test_capitals_are_read_as_small_letters() -> None:
    assert ALPHABET.read("Time") == ALPHABET.read("time")
