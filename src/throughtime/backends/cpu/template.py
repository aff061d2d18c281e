"""The argument block of one shape: worked out once, then only addresses are written in.

All words but the addresses of a call's tensors follow from shapes. A call takes an arena and writes
its tensors' addresses; the words, and small arenas, are kept for the next call.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from throughtime.backends.cpu.memory import give_back, take
from throughtime.backends.cpu.sizes import Team
from throughtime.compiler.llvm import threads
from throughtime.compiler.llvm.block import COMMON, DIRECTION

KEPT_BYTES: Final = 128 * 1024
"""The largest arena that only calls of its shape use."""


class InArena(int):
    """A place in the arena, counted from its start."""


class InBlock(int):
    """A place in the block itself, counted from its start."""


class Given(str):
    """A word that each call writes: the address of one of its tensors, by name."""


Word = int | InArena | InBlock | Given


class Arena:
    """Memory that machine code works in, laid out before it is taken."""

    def __init__(self) -> None:
        self.bytes = 0

    def reserve(self, bytes: int) -> InArena:
        """A place for so many bytes."""
        place = InArena(self.bytes)
        self.bytes += -(-bytes // 64) * 64
        return place

    def reserve_all(self, sizes: Mapping[str, int]) -> dict[str, Word]:
        """A place for each name."""
        return {name: self.reserve(bytes) for name, bytes in sizes.items()}


class Ready:
    """The words of one call, and the arena whose addresses are in them.

    Attributes:
        words: the block.
        address: of it.
        arena: what the call works in, if it has one now.
    """

    def __init__(self, template: Template) -> None:
        self.words = array("q", template.words)
        self.address = self.words.buffer_info()[0]
        for place in template.in_block:
            self.words[place] += self.address
        self.arena: np.ndarray | None = None
        self._start = 0

    def work_in(self, template: Template, arena: np.ndarray) -> None:
        """Have this arena; its addresses are there already if it is the one of the last call."""
        self.arena, start = arena, arena.ctypes.data
        if start != self._start:
            for place in template.in_arena:
                self.words[place] += start - self._start
            self._start = start


class Template:
    """The words of every call of one shape.

    Words are used again by the next call of the shape, and so is small memory: to take it and to
    write the words anew costs more than a small layer computes.

    Attributes:
        arena_bytes: of the memory that a call takes.
        words: as they are before a call.
        in_arena: places of words that count from the arena's start.
        in_block: places of words that count from the block's start.
    """

    def __init__(self, arena: Arena, common: Mapping[str, Word], D: int) -> None:
        self.arena_bytes = arena.bytes
        self.words = array("q", bytes(8 * (len(COMMON) + D * len(DIRECTION))))
        self.in_arena: list[int] = []
        self.in_block: list[int] = []
        self._given: list[tuple[int, str]] = []
        self._held: list[Any] = []
        self._ready: list[Ready] = []
        self._counters = range(0)
        for i, name in enumerate(COMMON):
            self._set(i, common.get(name, 0))

    def _set(self, place: int, word: Word) -> None:
        if isinstance(word, Given):
            self._given.append((place, word))
            return
        self.words[place] = word
        if isinstance(word, InArena):
            self.in_arena.append(place)
        elif isinstance(word, InBlock):
            self.in_block.append(place)

    def set_direction(self, d: int, values: Mapping[str, Word]) -> None:
        """The part of one direction; what is not named is 0."""
        for i, name in enumerate(DIRECTION):
            self._set(len(COMMON) + d * len(DIRECTION) + i, values.get(name, 0))

    def set_common(self, name: str, word: Word) -> None:
        """One word of the common part."""
        self._set(COMMON.index(name), word)

    def set_array(self, name: str, found: np.ndarray) -> None:
        """A word that points to an array, which the template keeps alive."""
        self.hold(found)
        self.set_common(name, found.ctypes.data)

    def hold(self, read: Any) -> None:
        """Keep alive what words point to, as long as the template is."""
        self._held.append(read)

    def set_counters(self, count: int) -> None:
        """The barriers' counters, each in a line of the cache; every call begins them at zero."""
        self._counters = range(len(self.words), len(self.words) + count * 8, 8)
        self.set_common("counter", self.list_of([0] * (8 * count)))

    def word(self, name: str) -> int:
        """A word of the common part that is the same for every call."""
        return self.words[COMMON.index(name)]

    def list_of(self, values: Sequence[Word]) -> InBlock:
        """Numbers that a word points to."""
        place = len(self.words)
        self.words.extend([0] * max(1, len(values)))
        for i, value in enumerate(values):
            self._set(place + i, value)
        return InBlock(8 * place)

    def run(self, region: int, team: Team, addresses: Mapping[str, int]) -> None:
        """Call the region with these tensors."""
        try:
            ready = self._ready.pop()
        except IndexError:  # the first call, or others are using what there is
            ready = Ready(self)
        if ready.arena is None:
            ready.work_in(self, take(self.arena_bytes))
        self.write(ready, addresses)
        threads.call(region, ready.address, team.threads, team.release_gil)
        if ready.arena is not None and (self.arena_bytes > KEPT_BYTES or self._ready):
            give_back(ready.arena)
            ready.arena = None
        if not self._ready:
            self._ready.append(ready)

    def write(self, ready: Ready, addresses: Mapping[str, int]) -> None:
        """Put the addresses of a call's tensors into its words."""
        words = ready.words
        for place, name in self._given:
            words[place] = addresses[name]
        for place in self._counters:
            words[place] = 0
