"""Waves made here, so that the task runs with no file: three shapes of two channels."""

from __future__ import annotations

import numpy as np

from throughtime.tasks.tables.table import DataTable

_SHAPES, _WAVES = ("chirp", "saw", "sine"), 240


def make_waves() -> DataTable:
    """Sequences of 20 to 40 steps with noise, whose means say nothing."""
    import polars as pl

    generator = np.random.default_rng(11)
    parts = []
    for number in range(_WAVES):
        shape = _SHAPES[number % len(_SHAPES)]
        steps = int(generator.integers(20, 41))
        phase = np.arange(steps) / 8 + generator.random()
        turn = phase * (1 + phase / 6) if shape == "chirp" else phase
        wave = 2 * (turn % 1) - 1 if shape == "saw" else np.sin(2 * np.pi * turn)
        noise = 0.3 * generator.standard_normal((2, steps))
        parts.append(
            pl.DataFrame({
                "wave": [f"w{number:03}"] * steps, "shape": [shape] * steps,
                "a": np.round(wave + noise[0], 4), "b": np.round(-wave / 2 + noise[1], 4),
            })
        )  # fmt: skip
    return DataTable(pl.concat(parts), "builtin", "made here")
