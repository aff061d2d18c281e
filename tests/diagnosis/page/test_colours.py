"""The colours: thin lines are seen on either ground, and no two look alike to colour-blind eyes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from throughtime.diagnosis.report.chart import PAGE, SERIES, list_swaps

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision
# Deficiency (2009), severity 1, on linear light.
EYES = {
    "full": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def light(colour: str) -> np.ndarray:
    """Linear light, (3,), of a colour."""
    v = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def lab(v: np.ndarray) -> np.ndarray:
    """CIELAB, (3,), of linear light."""
    x, y, z = np.cbrt(np.array(TO_XYZ) @ v.clip(0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""
    low, high = sorted(float(np.array(TO_XYZ)[1] @ light(c)) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", [0, 1])
def test_lines_and_words_stand_out(ground: int) -> None:
    card = PAGE["card"][ground]
    assert all(contrast(pair[ground], card) >= 3 for pair in SERIES)
    assert contrast(PAGE["grey"][ground], card) >= 3
    assert all(contrast(PAGE[n][ground], card) >= 4.5 for n in ("ink", "soft", "mark"))


@pytest.mark.parametrize("ground", [0, 1])
@pytest.mark.parametrize("eyes", EYES)
def test_no_two_series_look_alike(eyes: str, ground: int) -> None:
    seen = [lab(np.array(EYES[eyes]) @ light(pair[ground])) for pair in SERIES]
    near = {(i, j): np.linalg.norm(seen[i] - seen[j]) for i, j in combinations(range(len(seen)), 2)}
    assert min(near.values()) >= 20, near


def test_every_colour_has_one_on_dark_ground() -> None:
    assert len(list_swaps()) == len(PAGE) + len(SERIES)
