"""The package in a process where every call of compiled code runs on an emulated AArch64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.aarch64.guest import Guest
from throughtime.compiler.runtime import jit, machine, threads
from throughtime.compiler.runtime.machine import MACHINES, Machine


def compile_for(guest: Guest) -> None:
    """From now on this process compiles for AArch64 and calls what it compiled in a guest.

    Before anything was compiled: what is here already would stay.
    """

    class Linked:
        """An object as the guest has it, in the place of one in this process."""

        def __init__(self, image: bytes, machine: Machine) -> None:
            assert machine.name == "neon", machine
            self._addresses = guest.link(image)

        def address(self, name: str) -> int:
            """Where a function begins."""
            return self._addresses[name]

    def caller(function: int, team: int, *how: object) -> Callable[[int], None]:
        assert team == 1, "the guest has one thread"
        return partial(guest.call, function)

    replaced: list[tuple[Any, str, Any]] = [
        (jit, "Loaded", Linked),
        (threads, "caller", caller),
        (machine, "host", lambda: MACHINES["neon"]),
        (machine, "reason", lambda: None),
    ]
    for place, name, value in replaced:
        setattr(place, name, value)
