"""Twenty planted leaks are refused with their reason, twenty clean files are taken."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from throughtime.errors import DataError
from throughtime.tasks.classify import Classify
from throughtime.tasks.classify.find import make_waves
from throughtime.tasks.forecast import Forecast
from throughtime.tasks.forecast.find import make_builtin
from throughtime.tasks.language import Language
from throughtime.train.run import resolve

Frame = pl.DataFrame


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def days(rows: int = 480) -> Frame:
    """A target with a season, drift and noise, and a driver that acts a step later."""
    generator = np.random.default_rng(1)
    step = np.arange(rows)
    driver = generator.standard_normal(rows)
    noise = 0.3 * generator.standard_normal(rows)
    drift = np.cumsum(0.1 * generator.standard_normal(rows))
    late = np.concatenate([[0.0], driver[:-1]])
    target = 20 + 3 * np.sin(2 * np.pi * step / 24) + drift + 0.8 * late + noise
    begin = datetime.datetime(2024, 1, 1)
    return pl.DataFrame({
        "time": [begin + datetime.timedelta(hours=int(n)) for n in step],
        "y": target, "driver": driver,
    })  # fmt: skip


def rows(count: int = 90) -> Frame:
    """Ten measurements a row, of three kinds that lie in each other."""
    generator = np.random.default_rng(2)
    kinds = np.arange(count) % 3
    values = generator.standard_normal((count, 10)) + 0.7 * kinds[:, None]
    frame = pl.DataFrame({f"m{n}": values[:, n] for n in range(10)})
    names = np.array(["ash", "oak", "elm"])[kinds]
    return frame.with_columns(kind=pl.Series(names)).sample(fraction=1, shuffle=True, seed=3)


def code(column: str = "kind") -> pl.Expr:
    return pl.col(column).rank("dense").cast(pl.Int64)


def total(how: str) -> pl.Expr:
    day = pl.col("time").dt.date()
    return getattr(pl.col("y"), how)().over(day)


def noise(size: float, rows: int = 480) -> pl.Series:
    return pl.Series(size * np.random.default_rng(9).standard_normal(rows))


def copied_end() -> Frame:
    values = days()["y"].to_numpy().copy()
    values[-100:] = values[100:200]
    return days().with_columns(y=pl.Series(values))


def copied_waves() -> Frame:
    """Every sequence twice, under another name, with a little noise."""
    frame = make_waves().frame
    jitter = pl.Series(1e-3 * np.random.default_rng(4).standard_normal(len(frame)))
    again = frame.with_columns(wave=pl.lit("copy ") + pl.col("wave"), a=pl.col("a") + jitter)
    return pl.concat([frame, again])


def persons() -> Frame:
    """Each person has several rows of one kind."""
    frame = rows().sort("kind")
    return frame.with_columns(person=pl.Series([f"p{n // 5}" for n in range(len(frame))]))


FORECAST = {"target": "y", "horizon": 6}
ROWS = {"label": "kind"}
WAVES = {"label": "shape", "series": "wave"}

Case = tuple[type[Any], Callable[[], Frame], dict[str, Any], str]

LEAKS: dict[str, Case] = {
    "the target again": (
        Forecast, lambda: days().with_columns(x=pl.col("y")), FORECAST,
        "column x of data.csv must not tell y, and it copies it at its own step; take that"),
    "in other units": (
        Forecast, lambda: days().with_columns(x=32 + 1.8 * pl.col("y")), FORECAST,
        "copies it at its own step"),
    "its logarithm": (
        Forecast, lambda: days().with_columns(x=pl.col("y").log()), FORECAST,
        "copies it at its own step"),
    "the next value": (
        Forecast, lambda: days().with_columns(x=pl.col("y").shift(-1)), FORECAST,
        "copies it 1 steps before its time"),
    "a later value upside down": (
        Forecast, lambda: days().with_columns(x=-pl.col("y").shift(-5)), FORECAST,
        "copies it 5 steps before its time"),
    "the next value with noise": (
        Forecast, lambda: days().with_columns(x=pl.col("y").shift(-1) + noise(0.03)), FORECAST,
        "tells it 1 steps before its time, with what was before"),
    "the next change": (
        Forecast, lambda: days().with_columns(x=pl.col("y").diff().shift(-1)), FORECAST,
        "tells it 1 steps before its time, with what was before"),
    "a mean around it": (
        Forecast, lambda: days().with_columns(x=pl.col("y").rolling_mean(5, center=True)),
        FORECAST, "tells it 1 steps before its time, with what was before"),
    "a sum of what comes": (
        Forecast, lambda: days().with_columns(x=pl.col("y").rolling_sum(3).shift(-3)), FORECAST,
        "before its time, with what was before"),
    "the day's total": (
        Forecast, lambda: days().with_columns(x=total("sum")), FORECAST,
        "is made of what is seen later in its run"),
    "the day's most": (
        Forecast, lambda: days().with_columns(x=total("max")), FORECAST,
        "is made of what is seen later in its run"),
    "known that was not": (
        Forecast, lambda: days().with_columns(x=pl.col("y")), FORECAST | {"known": "x"},
        "copies it at its own step"),
    "known too early": (
        Forecast, lambda: days().with_columns(x=pl.col("y").shift(3)), FORECAST | {"known": "x"},
        "copies it 3 steps after its time"),
    "a test that was trained on": (
        Forecast, copied_end, FORECAST, "the test part of data.csv must be new, and column y"),
    "a code of the class": (
        Classify, lambda: rows().with_columns(x=code()), ROWS,
        "column x of data.csv must not tell kind, and it is another number for each class"),
    "a noisy code of the class in each step": (
        Classify, lambda: make_waves().frame.with_columns(
            x=code("shape") + noise(1e-3, len(make_waves().frame))), WAVES,
        "is another number for each class, whatever the step"),
    "an id that counts class by class": (
        Classify, lambda: rows().sort("kind").with_row_index("id"), ROWS,
        "numbers the sequences class by class"),
    "an id whose rest is the class": (
        Classify, lambda: rows().with_columns(
            x=code() - 1 + 3 * pl.int_range(pl.len())), ROWS,
        "is the class"),
    "one person on both sides": (
        Classify, persons, ROWS,
        "an item must stand on one side of the split, and column person of data.csv has 18"),
    "one sequence on both sides": (
        Classify, copied_waves, WAVES, "of its sequences are all but equal to one of the training"),
    "a value that one class alone has": (
        Classify, lambda: rows().select(
            pl.when(kind="ash").then(pl.col("m0")).alias("x"), pl.all()), ROWS,
        "is missing in all of"),
}  # fmt: skip


def seasons(**more: pl.Expr) -> Frame:
    return days().with_columns(**more)


def walk(rows: int = 400) -> Frame:
    steps = np.random.default_rng(6).standard_normal((rows, 2))
    return pl.DataFrame({"y": np.cumsum(steps[:, 0]), "x": np.cumsum(steps[:, 1])})


def trend() -> Frame:
    """Two lines that rise: each says what the other does, and neither tells what comes."""
    step = np.arange(200.0)
    return pl.DataFrame({"y": 3 * step + 1, "x": step**2, "year": 1800 + step})


def sensors() -> Frame:
    """Two thermometers beside each other."""
    return days().with_columns(x=pl.col("y") + noise(0.05))


CLEAN: dict[str, tuple[type[Any], Callable[[], Frame], dict[str, Any]]] = {
    "a driver of the past": (Forecast, days, FORECAST),
    "the built-in series": (
        Forecast, lambda: make_builtin().frame, {"target": "load", "known": "holiday"}),
    "the value before": (
        Forecast, lambda: seasons(x=pl.col("y").shift(1)), FORECAST),
    "a mean of the past": (
        Forecast, lambda: seasons(x=pl.col("y").rolling_mean(5)), FORECAST),
    "the value a horizon before, known": (
        Forecast, lambda: seasons(x=pl.col("y").shift(6)), FORECAST | {"known": "x"}),
    "the day's total of yesterday": (
        Forecast, lambda: seasons(x=total("sum").shift(24)), FORECAST),
    "calendar columns": (
        Forecast, lambda: seasons(hour=pl.col("time").dt.hour(), day=pl.col("time").dt.day()),
        FORECAST | {"known": "hour,day"}),
    "a number that counts rows": (Forecast, lambda: seasons(x=pl.int_range(pl.len())), FORECAST),
    "two walks": (Forecast, walk, FORECAST),
    "two lines that rise": (Forecast, trend, FORECAST),
    "a pure wave": (
        Forecast, lambda: pl.DataFrame({"y": np.sin(np.arange(400) * 2 * np.pi / 24).round(6)}),
        FORECAST),
    "two thermometers": (Forecast, sensors, FORECAST),
    "a wave and its turn": (
        Forecast, lambda: pl.DataFrame({"y": np.sin(np.arange(400) / 4), "x": np.cos(
            np.arange(400) / 4)}), FORECAST),
    "rows of measurements": (Classify, rows, ROWS),
    "rows with numbers in their order": (Classify, lambda: rows().with_row_index("id"), ROWS),
    "rows with the place they come from": (
        Classify, lambda: rows().with_columns(
            place=pl.Series([f"town {n % 7}" for n in range(90)])), ROWS),
    "persons that are kept together": (Classify, persons, ROWS | {"group": "person"}),
    "waves": (Classify, lambda: make_waves().frame, WAVES),
    "waves with a constant": (
        Classify, lambda: make_waves().frame.with_columns(age=pl.col("wave").hash() % 60), WAVES),
    "rows that end at different places": (
        Classify, lambda: rows().with_columns(
            pl.when(kind="ash").then(None).otherwise(pl.col("m9")).alias("m9")), ROWS),
    "waves without noise": (
        Classify, lambda: pl.DataFrame(
            {f"t{k}": np.sin(np.arange(300) * 1.7 + k / 3) * (1 + np.arange(300) % 2)
             for k in range(20)}).with_columns(
                 kind=pl.Series(["low", "high"] * 150)), ROWS),
    "a measurement that parts two kinds": (
        Classify, lambda: rows().with_columns(m3=pl.col("m3") + 8 * code()), ROWS),
}  # fmt: skip


def settled(kind: type[Any], frame: Frame, options: dict[str, Any]) -> Any:
    frame.write_csv("data.csv")
    return resolve(kind, {"data": "data.csv", "threads": 1, **options})


def test_there_are_twenty_of_each() -> None:
    assert len(LEAKS) >= 20 and len(CLEAN) >= 20


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_refused_with_its_reason(name: str) -> None:
    kind, make, options, said = LEAKS[name]
    with pytest.raises(DataError) as caught:
        settled(kind, make(), options)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_file_is_taken(name: str) -> None:
    kind, make, options = CLEAN[name]
    settled(kind, make(), options)


def test_groups_stay_on_one_side() -> None:
    frame = persons()
    facts = settled(Classify, frame, ROWS | {"group": "person"}).facts
    sides = {split: {frame["person"][n] for n in part} for split, part in facts["splits"].items()}
    assert sum(map(len, sides.values())) == len(set.union(*sides.values())) == 18
    assert "person" not in facts["columns"]


def test_a_text_that_repeats_itself_is_refused() -> None:
    Path("data.txt").write_text(
        "".join(f"line {n % 90} of a text that goes round\n" for n in range(900))
    )
    with pytest.raises(DataError, match="the test part of data.txt must be new"):
        resolve(Language, {"data": "data.txt"})
