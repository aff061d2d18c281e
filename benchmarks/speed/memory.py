"""How much memory one call takes at its peak, as the system counts it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

from benchmarks.speed.contender import Contender

SELF = Path("/proc/self")


def added_peak(contender: Contender) -> int | None:
    """Bytes that one call holds at its peak beyond what is resident before it.

    What the call leaves behind (gradients) is counted; what a program keeps from one call to the
    next is not. Memory freed before is handed back to the system first. None where the system keeps
    no such count (Linux does).
    """
    try:
        contender.clear()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        (SELF / "clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        contender.run()
        peak = _status("VmHWM")
        contender.clear()
        return max(0, peak - before)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    for line in (SELF / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the system does not tell {name}")
