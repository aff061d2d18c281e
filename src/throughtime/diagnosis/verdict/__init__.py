"""The verdict: which trouble the numbers show, and what a change would do, measured.

One trouble is here; its rules and the copies that changes are measured on have files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """One trouble and what would change it.

    Attributes:
        kind: "not finite", "not seen", "exploding", "vanishing", "written too weakly",
            "frozen gates", "dead units", "truncation" or "clipping"; of a caution "remembers
            little".
        name: the module's name in the model; empty when it is the model or not one module's.
        sentence: the trouble with its number.
        advice: what to change, with the number measured after the change where one can be.
        log10_rho_before: for exploding and vanishing, log10 rho(lag) of the layer; else None.
        log10_rho_after: the same on a copy that was started anew; None where it could not be
            started or looked at.
    """

    kind: str
    name: str
    sentence: str
    advice: str
    log10_rho_before: float | None = None
    log10_rho_after: float | None = None


def locate(layer: int, direction: int, name: str) -> str:
    """A layer and direction in words."""
    return f"layer {layer}{f' of {name}' if name else ''}{', backward' if direction else ''}"
