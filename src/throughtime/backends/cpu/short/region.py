"""Regions prepared by shape: what is left to a call is to write addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from torch import Tensor

from throughtime.backends.cpu.block import RaggedWords, Ready, Template
from throughtime.backends.cpu.look import check_whole
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
        first, weights: the number of the first tensor that is a weight, and all their names. Their
            storages are looked at once an address, for a storage that is given another size moves.
        aside: name -> bytes of what the region writes and nothing reads.
    """

    def __init__(
        self, template: Template, function: int, team: Team, places: Sequence[Place],
        first: int, weights: Sequence[str],
        aside: Mapping[str, int] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        words = template.places()
        self._template = template
        self._function = threads.caller(function, *team.how)
        self._weights, self._names = slice(first, first + len(weights)), tuple(weights)
        of_weights = range(first, first + len(weights))
        every = [(words[name], i, start) for name, i, start in places]
        self._places = tuple(place for place in every if place[1] not in of_weights)
        self._weight_places = tuple(place for place in every if place[1] in of_weights)
        self._counters = tuple(template.counters)
        self._aside = tuple((words[name], bytes) for name, bytes in aside.items())
        self._fixed: list[tuple[int, int]] = []
        self._held: RaggedWords | None = None
        self._keeps = template.arena_bytes <= KEPT_BYTES
        self._ready: list[Ready] = []

    def run(self, tensors: Sequence[Tensor]) -> None:
        """Call it; the tensors live until then.

        Raises:
            ShapeError: a weight's storage is too small for it.
        """
        try:
            ready = self._ready.pop()
        except IndexError:  # the first call, or another thread is using what there is
            ready = self._new()
        if ready.arena is None:
            ready.work_in(self._template, take(self._template.arena_bytes))
        words, addresses = ready.words, [v.data_ptr() for v in tensors]
        if addresses[self._weights] != ready.weights:
            self._look(tensors, addresses, ready)
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

    def _look(self, tensors: Sequence[Tensor], addresses: Sequence[int], ready: Ready) -> None:
        """Look at weights, and write their addresses, which stay until these are others."""
        for name, v in zip(self._names, tensors[self._weights], strict=True):
            check_whole(name, v)
        for place, i, first in self._weight_places:
            ready.words[place] = addresses[i] + first
        ready.weights = list(addresses[self._weights])

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
