"""Regions prepared by shape: what is left to a call is to write addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from throughtime.backends.cpu.block import KEPT_BYTES, Ready, Template
from throughtime.backends.cpu.memory import fresh, give_back, take
from throughtime.compiler.runtime import threads

MOST_SHAPES: Final = 32
"""Shapes of a layer that are prepared for a forward, and as many for a backward pass."""

Value = TypeVar("Value")


class Shapes(Generic[Value]):
    """What is prepared, by shape.

    Where as many as may be are there, one that comes anew goes the long way, and takes the place of
    the oldest when it comes twice in a row: so shapes that change at each call cost nothing here.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], Value | None] = {}
        self._missed: tuple[int, ...] = ()

    def add(self, key: tuple[int, ...], make: Callable[[], Value | None]) -> Value | None:
        """What is made for a shape that is not known; None: it goes the long way."""
        if len(self.known) >= MOST_SHAPES:
            if key != self._missed:
                self._missed = key
                return None
            self.known.pop(next(iter(self.known)), None)
        self.known[key] = found = make()
        return found


class ShortRegion:
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
