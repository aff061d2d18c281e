"""One shape's region with its argument block: what is left to a call is to write addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from throughtime.backends.cpu.block import KEPT_BYTES, Ready, Template
from throughtime.backends.cpu.memory import fresh, give_back, take
from throughtime.compiler.runtime import threads


class Region:
    """A region of one thread, called with addresses in an order agreed on once.

    Args:
        template: of its words; what is not named here stays 0, which says "not given".
        function: the region's address.
        release_gil: whether other Python threads may run meanwhile.
        names: of the addresses, in the order in which calls give them.
        aside: name -> bytes of what the region writes and nobody reads.
    """

    def __init__(
        self, template: Template, function: int, release_gil: bool, names: Sequence[str],
        aside: Mapping[str, int] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        places = template.places()
        self._template = template
        self._function = threads.alone(function, release_gil)
        self._places = tuple(places[name] for name in names)
        self._counters = tuple(template.counters)
        self._aside = tuple((places[name], bytes) for name, bytes in aside.items())
        self._keeps = template.arena_bytes <= KEPT_BYTES
        self._ready: list[Ready] = []

    def run(self, addresses: Sequence[int]) -> None:
        """Call it; the tensors behind the addresses live until then."""
        try:
            ready = self._ready.pop()
        except IndexError:  # the first call, or another thread is using what there is
            ready = self._new()
        if ready.arena is None:
            ready.work_in(self._template, take(self._template.arena_bytes))
        words = ready.words
        for place, address in zip(self._places, addresses, strict=True):
            words[place] = address
        for place in self._counters:
            words[place] = 0
        self._function(ready.address)
        if self._ready:
            return
        if not self._keeps and ready.arena is not None:
            give_back(ready.arena)
            ready.arena = None
        self._ready.append(ready)

    def _new(self) -> Ready:
        ready = Ready(self._template)
        for place, bytes in self._aside:
            memory = fresh(bytes)
            ready.hold(memory)
            ready.words[place] = memory.ctypes.data
        return ready
