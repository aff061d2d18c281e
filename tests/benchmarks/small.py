"""Rows made up for the tests, and a tiny case."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.grid import shape
from benchmarks.speed.works import WORKS, Case

TINY = shape(3, 4, 5, 2)


def case(work: str, cell: str) -> Case:
    """One work on one cell at a tiny odd shape."""
    return Case(next(w for w in WORKS if w.name == work), cell, TINY)


def row(work: str, cell: str, ratios: dict[str, float], H: int = 32, **more: Any) -> dict[str, Any]:
    """A measured row with these ratios, each without spread; no ratios: it is red."""
    found = {n: {"ratio": r, "q1": r, "q3": r} for n, r in ratios.items()}
    return {
        "key": f"{work}/{cell}/16x50x{H}x{H}",
        "work": work,
        "cell": cell,
        "H": H,
        "red": [] if ratios else ["throughtime"],
        "ratios": found,
        "best": min(ratios, key=lambda n: ratios[n], default=None),
        **more,
    }
