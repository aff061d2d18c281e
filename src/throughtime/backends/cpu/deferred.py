"""Regions that wait for each other: all are prepared first, then run back to back.

A region of some milliseconds leaves the caches full of its own numbers. Python that prepares the
next one then takes several times as long as right after the preparation of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from throughtime.backends.cpu.block import Ready, Template
from throughtime.backends.cpu.memory import Slab, give_back, take
from throughtime.backends.cpu.schedule import Team
from throughtime.compiler.llvm.abi import COMMON

_Finish = Callable[[], object] | None

MOST: Final = 64
"""Regions that wait, each with some kilobytes of words and what it holds."""


class Queue:
    """Regions of segments of one call, in the order in which they were put.

    Those of one template work in the same arena, where the first of them packs the weights for all.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[int], None], Ready, _Finish, Any]] = []
        self._arenas: dict[Template, Slab] = {}

    def put(
        self, template: Template, region: int, team: Team, addresses: Mapping[str, int],
        finish: _Finish, held: Any,
    ) -> None:  # fmt: skip
        """Let a region wait.

        Args:
            template: of its words.
            region, team, addresses: as `Template.run` takes them.
            finish: called after the region.
            held: what must live until then.
        """
        ready = Ready(template)
        if template in self._arenas:
            ready.words[COMMON.index("packed")] = 1
        else:
            self._arenas[template] = take(template.arena_bytes)
        ready.work_in(template, self._arenas[template])
        template.write(ready, addresses)
        self._waiting.append((template.caller(region, team), ready, finish, held))
        if len(self._waiting) >= MOST:
            self.run()

    def run(self) -> None:
        """Run all that waits."""
        waiting, self._waiting = self._waiting, []
        for call, ready, finish, _ in waiting:
            call(ready.address)
            if finish is not None:
                finish()
        while self._arenas:
            give_back(self._arenas.popitem()[1])


def carry(
    queue: Queue | None, template: Template, region: int, team: Team,
    addresses: Mapping[str, int], finish: _Finish = None, *held: Any,
) -> None:  # fmt: skip
    """Run a region, or let it wait where there is a queue; arguments as `Queue.put` has them."""
    if queue is not None:
        queue.put(template, region, team, addresses, finish, held)
        return
    template.run(region, team, addresses)
    if finish is not None:
        finish()
