"""torch's runtime, seen through: a clock that stands still, and teams that are counted.

No team is late where no time passes, so none goes alone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any, cast

import pytest

from throughtime.compiler.runtime import threads

_known = threads.runtime


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
def _clock(_: int, to: Any) -> int:
    ctypes.memset(to, 0, 16)
    return 0


@functools.cache
def runtime() -> threads.Runtime | None:
    """In place of `threads.runtime`."""
    found, stopped = _known(), ctypes.cast(_clock, ctypes.c_void_p).value or 0
    return None if found is None else dataclasses.replace(found, clock_gettime=stopped)


Team = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint)


def count_teams(patch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each team, from now on, of what is prepared from now on."""
    found, teams = runtime(), list[int]()
    assert found is not None
    start = cast(Any, Team(found.GOMP_parallel))

    @Team
    def counted(function: int, argument: int, threads: int, flags: int) -> None:
        teams.append(threads)
        start(function, argument, threads, flags)

    _held.append(counted)  # what is prepared may be called later
    address = ctypes.cast(counted, ctypes.c_void_p).value or 0
    patch.setattr(threads, "runtime", lambda: dataclasses.replace(found, GOMP_parallel=address))
    return teams


_held: list[Any] = []
