"""Two series made here, so that the task runs with no file: what a town and a village use."""

from __future__ import annotations

import numpy as np

from throughtime.tasks.tables.table import DataTable

_STEPS = 24 * 7 * 8


def make_builtin() -> DataTable:
    """Eight weeks by the hour: a day's and a week's cycle, holidays, a slow drift, noise."""
    from datetime import datetime, timedelta

    import polars as pl

    generator = np.random.default_rng(7)
    hours, begin = np.arange(_STEPS), datetime(2025, 1, 6)
    day, week = 2 * np.pi * hours / 24, hours // 24 % 7
    parts = []
    for place, size in (("town", 40.0), ("village", 6.0)):
        holiday = np.repeat(generator.random(_STEPS // 24) < 0.1, 24)
        drift = np.zeros(_STEPS)
        for step in range(1, _STEPS):
            drift[step] = 0.97 * drift[step - 1] + 0.06 * generator.standard_normal()
        calm = np.where((week >= 5) | holiday, 0.6, 1.0)
        load = 2 + calm * (0.8 * np.sin(day - 2) + 0.4 * np.sin(2 * day)) + drift
        parts.append(
            pl.DataFrame({
                "time": [begin + timedelta(hours=int(hour)) for hour in hours],
                "place": [place] * _STEPS,
                "holiday": holiday.astype(np.int64),
                "load": np.round(size * load + 0.02 * size * generator.standard_normal(_STEPS), 3),
            })
        )  # fmt: skip
    return DataTable(pl.concat(parts), "builtin", "made here")
