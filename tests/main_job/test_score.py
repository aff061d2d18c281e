"""Error rates against twins written by hand from their definitions."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.tasks.pronounce import edit_distance, error_rates

SOUNDS = ("AH0", "AH1", "EY1", "T", "K")
one_pronunciation = st.lists(st.sampled_from(SOUNDS), min_size=1, max_size=6).map(tuple)


@cache
def edits_twin(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Fewest edits, by trying all three at the first difference."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return edits_twin(one[1:], other[1:])
    rest = (one[1:], other), (one, other[1:]), (one[1:], other[1:])
    return 1 + min(edits_twin(*pair) for pair in rest)


def rates_twin(
    answers: dict[str, tuple[str, ...]], listed: dict[str, tuple[tuple[str, ...], ...]]
) -> tuple[float, float]:
    """WER and PER with stress, written out word by word."""
    wrong = total = edited = 0
    for word, answer in answers.items():
        wrong += not any(answer == truth for truth in listed[word])
        closest = sorted((edits_twin(answer, truth), len(truth)) for truth in listed[word])[0]
        if answer in listed[word]:
            closest = (0, len(answer))
        edited, total = edited + closest[0], total + closest[1]
    return wrong / len(answers), edited / total


def bare(sounds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("".join(letter for letter in one if letter.isalpha()) for one in sounds)


@given(one_pronunciation, one_pronunciation)
def test_edits_are_the_fewest(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert edit_distance(one, other) == edits_twin(one, other) == edit_distance(other, one)
    assert edit_distance(one, ()) == len(one)


@given(
    st.lists(
        st.tuples(one_pronunciation, st.lists(one_pronunciation, min_size=1, max_size=3)),
        min_size=1,
        max_size=5,
    )
)
def test_rates_are_those_of_the_twin(pairs: list[tuple[tuple[str, ...], list]]) -> None:
    answers = {f"w{i}": answer for i, (answer, _) in enumerate(pairs)}
    listed = {f"w{i}": tuple(dict.fromkeys(truths)) for i, (_, truths) in enumerate(pairs)}
    found = error_rates(answers, listed)
    assert (found["wer_stress"], found["per_stress"]) == rates_twin(answers, listed)
    plain = {word: bare(answer) for word, answer in answers.items()}
    bare_listed = {word: tuple(map(bare, truths)) for word, truths in listed.items()}
    assert (found["wer"], found["per"]) == rates_twin(plain, bare_listed)


def test_any_listed_pronunciation_is_right_and_stress_counts_only_with_stress() -> None:
    listed = {"read": (("R", "EH1", "D"), ("R", "IY1", "D")), "a": (("AH0",), ("EY1",))}
    answers = {"read": ("R", "IY1", "D"), "a": ("AH1",)}
    assert error_rates(answers, listed) == {
        "wer": 0.0,
        "per": 0.0,
        "wer_stress": 0.5,
        "per_stress": pytest.approx(1 / 4),
    }


def test_the_error_rate_is_against_the_closest_pronunciation() -> None:
    listed = {"w": (("A", "B", "C", "D"), ("A", "B"))}
    assert error_rates({"w": ("A", "B", "B")}, listed)["per"] == 1 / 2


def test_edits_keep_the_triangle() -> None:
    words = [tuple(w) for n in range(3) for w in product("AB", repeat=n)]
    for a, b, c in product(words, repeat=3):
        assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
