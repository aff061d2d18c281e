"""Word and sound error rates, and the rule they follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from throughtime.tasks.pronounce.words import Entries, Pronunciation, without_stress

RULE = (
    "WER: share of words whose answer equals none of the listed pronunciations; "
    "PER: edits to the closest listed pronunciation over its sounds"
)


def rates(answers: Mapping[str, Pronunciation], listed: Entries) -> dict[str, float]:
    """WER and PER of answers, with stress marks and without, as shares.

    wer = words whose answer is not listed / words
    per = sum of edits(answer, closest) / sum of len(closest), the closest listed pronunciation
    """
    plain = {word: without_stress(answer) for word, answer in answers.items()}
    bare = {word: tuple(map(without_stress, listed[word])) for word in answers}
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
    pairs = [_closest(answer, listed[word]) for word, answer in answers.items()]
    return sum(edits for edits, _ in pairs) / sum(sounds for _, sounds in pairs)


def _closest(answer: Pronunciation, listed: Sequence[Pronunciation]) -> tuple[int, int]:
    if answer in listed:
        return 0, len(answer)
    return min((edits(answer, truth), len(truth)) for truth in listed)


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements that make one sequence the other.

    e[i, j] = min(e[i-1, j] + 1, e[i, j-1] + 1, e[i-1, j-1] + (one[i] != other[j]))
    """
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        above, row = row, [i]
        for j, right in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]
