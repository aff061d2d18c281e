"""Which side an item stands on, by what it says and never by its place; what training then knows.

Items of one key stand on one side. Keys are taken in the order of their hash: the first tenth of
the items tests, the next tenth chooses the weights, the rest is trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

SIDES = ("train", "validation", "test")
_HELD_OUT = 0.1  # of the items, for each of the two sides


def make_sides(keys: Sequence[str], weights: Sequence[int] | None = None) -> dict[str, list[int]]:
    """The numbers of the items of each side.

    A key whose items weigh more than a side may have is trained on.

    Args:
        keys: of the items; what has one key stays together.
        weights: of the items, 1 where left out.
    """
    by_key: dict[str, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        by_key[key].append(number)
    weights = weights or [1] * len(keys)
    share = max(1, math.floor(_HELD_OUT * sum(weights)))
    filled = {"test": 0, "validation": 0}
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    for numbers in sorted(by_key.items(), key=lambda item: seal(item[0])):
        weight = sum(weights[n] for n in numbers[1])
        side = next((s for s, full in filled.items() if full < share), "train")
        if side != "train" and weight > max(share, 1):
            side = "train"
        if side != "train":
            filled[side] += weight
        sides[side] += numbers[1]
    return {side: sorted(numbers) for side, numbers in sides.items()}


def seal(text: str) -> str:
    """A text's hash."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def join_keys(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A key for each pair, the same for pairs that share their first or their second part.

    It is the smallest text among those that hang together, so that no order matters.
    """
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    listed = list(pairs)
    for first, second in listed:
        a, b = sorted((root((0, first)), root((1, second))))
        parent[b] = a
    return [root((0, first))[1] for first, _ in listed]


@dataclass(frozen=True)
class Vocabulary:
    """Units by number, behind those that every vocabulary has: 0 .. `first` - 1.

    Attributes:
        units: as training has them, the most frequent first.
        first: the number of the first one.
        unknown: the number of all others.
    """

    units: list[str]
    first: int
    unknown: int

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {unit: number for number, unit in enumerate(self.units, start=self.first)}

    def __len__(self) -> int:
        return self.first + len(self.units)

    def __contains__(self, unit: str) -> bool:
        return unit in self._numbers

    def number(self, unit: str) -> int:
        """Of a unit, or of the unknown."""
        return self._numbers.get(unit, self.unknown)

    def unit(self, number: int) -> str:
        """The unit of a number; `?` for what is none."""
        return self.units[number - self.first] if number >= self.first else "?"


def most_frequent(units: Iterable[str], at_most: int, at_least: int = 1) -> list[str]:
    """The units that stand at least so often, the most frequent first, equals by their text."""
    counted = Counter(units)
    kept = [unit for unit, count in counted.items() if count >= at_least]
    return sorted(kept, key=lambda unit: (-counted[unit], unit))[:at_most]
