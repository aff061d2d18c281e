"""The dictionary: read as its authors wrote it, split by word, nothing on two sides."""

from __future__ import annotations

import hashlib
import lzma
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.errors import DataError, OptionError
from throughtime.tasks.pronounce import (
    ALPHABET,
    SIDES,
    choose_side,
    parse_dictionary,
    read_dictionary,
    strip_stress,
    take_side,
)

DATA = files("throughtime.tasks.pronounce") / "data"


def test_alternates_comments_and_repeats_are_read() -> None:
    lines = [
        "tomato T AH0 M EY1 T OW2",
        "tomato(2) T AH0 M AA1 T OW2 # british",
        "tomato(3) T AH0 M EY1 T OW2",
        "",
        "# nothing but a remark",
        "'em AH0 M",
    ]
    assert parse_dictionary(lines) == {
        "tomato": (("T", "AH0", "M", "EY1", "T", "OW2"), ("T", "AH0", "M", "AA1", "T", "OW2")),
        "'em": (("AH0", "M"),),
    }


def test_a_word_without_sounds_is_refused_by_its_line() -> None:
    with pytest.raises(DataError, match=r"line 2 must be a word and its sounds, got 'b # B'"):
        parse_dictionary(["a AH0", "b # B"])


def test_the_embedded_file_is_the_published_one() -> None:
    packed = (DATA / "cmudict.dict.xz").read_bytes()
    published = "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"
    assert len(packed) < 900_000
    assert hashlib.sha256(lzma.decompress(packed)).hexdigest() == published


def test_the_alphabet_is_what_occurs_in_it() -> None:
    entries = read_dictionary()
    assert set(ALPHABET.letters) == {letter for word in entries for letter in word}
    sounds = {sound for listed in entries.values() for one in listed for sound in one}
    assert set(ALPHABET.sounds) == sounds
    assert len(set(ALPHABET.sounds)) == len(ALPHABET.sounds) == 69


def test_its_licence_stands_beside_it() -> None:
    text = (DATA / "LICENSE").read_text()
    assert "Carnegie Mellon University" in text
    assert "Redistributions in binary form must reproduce the above copyright" in text
    assert "GNU" not in text


def test_it_has_the_size_the_documents_state() -> None:
    entries = read_dictionary()
    pronunciations = [one for listed in entries.values() for one in listed]
    letters = sum(letter.isalpha() for word in entries for letter in word)
    sounds = sum(len(listed[0]) for listed in entries.values())
    assert round(len(entries), -3) == 126_000
    assert round(len(pronunciations), -3) == 135_000
    assert round(letters / len(entries), 1) == 7.4
    assert round(sounds / len(entries), 1) == 6.3


def test_the_sides_share_no_word_and_leave_none_out() -> None:
    entries = read_dictionary()
    sides = [take_side(entries, name) for name in SIDES]
    assert sum(map(len, sides)) == len(entries)
    assert {word: listed for one in sides for word, listed in one.items()} == entries
    shares = [len(one) / len(entries) for one in sides]
    assert shares == pytest.approx([0.88, 0.02, 0.1], abs=0.003)


# Written down once: a split that moves would compare with nothing published before.
KNOWN = {"recurrent": "train", "through": "test", "time": "train", "butte": "test"}


def test_the_split_never_moves() -> None:
    assert {word: choose_side(word) for word in KNOWN} == KNOWN


@given(st.text(alphabet="abc'-.", min_size=1), st.integers(min_value=2, max_value=9))
def test_alternates_are_on_the_side_of_their_word(word: str, number: int) -> None:
    entries = parse_dictionary([f"{word} AH0", f"{word}({number}) EY1"])
    held = [name for name in SIDES if take_side(entries, name)]
    assert held == [choose_side(word)]
    assert take_side(entries, held[0]) == {word: (("AH0",), ("EY1",))}


def test_an_unknown_side_is_refused_with_the_closest() -> None:
    with pytest.raises(OptionError, match="split must be one of .*, got 'tset'; did you mean test"):
        take_side({}, "tset")


def test_stress_marks_come_off_vowels_only() -> None:
    assert strip_stress(("AH0", "M", "EY1", "OW2", "ZH")) == ("AH", "M", "EY", "OW", "ZH")
