"""Sizes of the caches, as the system tells them."""

from __future__ import annotations

from pathlib import Path

CPU0 = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

# Where the system says nothing.
USUAL = {"L1": 32 * 2**10, "L2": 2**20, "L3": 16 * 2**20}


def cache_bytes(folder: Path = CPU0) -> dict[str, int]:
    """Level -> bytes of a core's data caches; L3 is shared."""
    found = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.rstrip("KMG")) * UNITS.get(size[-1], 1)
    return USUAL | found
