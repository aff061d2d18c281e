"""The colours of the page, once for light and once for dark; any two series stay apart for
colour-blind eyes."""

from __future__ import annotations

PAGE = {
    "paper": ("#fbfbfa", "#15181c"),
    "card": ("#ffffff", "#1d2126"),
    "ink": ("#1f2328", "#e4e7ea"),
    "soft": ("#59636e", "#a3acb6"),
    "edge": ("#d8dce0", "#343a41"),
    "grid": ("#e9ecef", "#2b3037"),
    "band": ("#dfe3e7", "#3a4149"),
    "grey": ("#8b949e", "#7d8791"),
    "mark": ("#59636f", "#a3acb7"),
    "alarm": ("#b3261e", "#ff9d8f"),
    "warn": ("#8a5a00", "#f0c36b"),
    "calm": ("#00694f", "#4fd1a5"),
}
"""Name -> the colour on light ground, the colour on dark ground; no light one stands twice."""

SERIES = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#f0a04b"),
    ("#138870", "#c2e9e6"),
    ("#50184d", "#c5458e"),
    ("#523514", "#e8d6a8"),
    ("#2930ba", "#6377f6"),
)
"""Of the curves; the first two after Okabe and Ito, Color Universal Design (2008), the others
chosen to stay far from them and each other to eyes that lack one kind of cone."""


def light(name: str) -> str:
    """A colour by its name as it is on light ground; charts are drawn in these."""
    return PAGE[name][0]


def variables() -> str:
    """The colours as CSS variables, for either ground."""
    by_ground = [";".join(f"--{n}:{pair[i]}" for n, pair in PAGE.items()) for i in (0, 1)]
    return (
        f":root{{color-scheme:light dark;{by_ground[0]}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{by_ground[1]}}}}}"
    )


def swaps() -> dict[str, str]:
    """The colour on light ground -> the one on dark ground, for the charts."""
    return dict((*PAGE.values(), *SERIES))
