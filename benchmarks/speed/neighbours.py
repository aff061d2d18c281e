"""How much of the machine others took while a row was measured: their share blurs its times."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Instant:
    """Seconds of all cores so far: busy for anyone (or taken by the host), and ours."""

    clock: float
    busy: float
    ours: float


def now() -> Instant | None:
    """This instant; None where the system keeps no such count (Linux does)."""
    try:
        fields = [int(word) for word in STAT.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _idle, _waiting, irq, soft, steal = fields
    busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return Instant(time.monotonic(), busy, time.process_time())


def others_share(begun: Instant | None, done: Instant | None) -> float | None:
    """Share of all cores' time between two instants that went to others, 0 to 1."""
    if begun is None or done is None:
        return None
    core_seconds = (done.clock - begun.clock) * (os.cpu_count() or 1)
    others = (done.busy - begun.busy) - (done.ours - begun.ours)
    return min(1.0, max(0.0, others / core_seconds))
