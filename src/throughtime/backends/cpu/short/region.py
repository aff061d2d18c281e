"""Regions prepared by shape: what is left to a call is to write addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from torch import Tensor

from throughtime.backends.cpu.block import RaggedWords, Ready, Template
from throughtime.backends.cpu.memory import fresh, give_back, take
from throughtime.backends.cpu.schedule import Team
from throughtime.compiler.runtime import threads

KEPT_BYTES: Final = 16 * 1024
"""The largest arena that a region keeps; others are taken anew by each call, in one microsecond.

A layer keeps hundreds of regions.
"""

Place = tuple[str, int, int]
"""A word of the block, the number of the tensor it points into, and bytes from its start."""


class ShortRegion:
    """A region called with tensors in an order agreed on once.

    Args:
        template: of its words; what is not named here stays 0, which says "not given".
        function: the region's address.
        team: of threads that run it.
        places: of the addresses.
        aside: name -> bytes of what the region writes and nothing reads.
    """

    def __init__(
        self, template: Template, function: int, team: Team, places: Sequence[Place],
        aside: Mapping[str, int] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        words = template.places()
        self._template = template
        self._function = threads.caller(function, *team.how)
        self._places = tuple((words[name], i, first) for name, i, first in places)
        self._counters = tuple(template.counters)
        self._aside = tuple((words[name], bytes) for name, bytes in aside.items())
        self._fixed: list[tuple[int, int]] = []
        self._held: RaggedWords | None = None
        self._keeps = template.arena_bytes <= KEPT_BYTES
        self._ready: list[Ready] = []

    def run(self, tensors: Sequence[Tensor]) -> None:
        """Call it; the tensors live until then."""
        try:
            ready = self._ready.pop()
        except IndexError:  # the first call, or another thread is using what there is
            ready = self._new()
        if ready.arena is None:
            ready.work_in(self._template, take(self._template.arena_bytes))
        words, addresses = ready.words, [v.data_ptr() for v in tensors]
        for place, i, first in self._places:
            words[place] = addresses[i] + first
        for place in self._counters:
            words[place] = 0
        self._function(ready.address)
        if self._ready:
            return
        if not self._keeps and ready.arena is not None:
            give_back(ready.arena)
            ready.arena = None
        self._ready.append(ready)

    def fix(self, name: str, address: int) -> None:
        """One word for all calls."""
        self._fixed.append((self._template.places()[name], address))

    def fix_all(self, words: RaggedWords | None) -> None:
        """The words of ragged rows for all calls, if these are any."""
        if words is not None:
            self._held = words
            for name, address in words.addresses.items():
                self.fix(name, address)

    def _new(self) -> Ready:
        ready = Ready(self._template)
        for place, bytes in self._aside:
            memory = fresh(bytes)
            ready.hold(memory)
            ready.words[place] = memory.ctypes.data
        for place, address in self._fixed:
            ready.words[place] = address
        return ready
