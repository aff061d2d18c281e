"""What a file is said to hold, and a run measured on another file."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import throughtime
from throughtime.cli import main
from throughtime.cli.commands.data import describe_columns, describe_rows
from throughtime.errors import DataError, OptionError
from throughtime.tasks import find
from throughtime.tasks.classify.find import make_waves
from throughtime.tasks.forecast.find import make_builtin
from throughtime.tasks.tables import make_table
from throughtime.train.run import resolve

SMALL: dict[str, Any] = {
    "hidden": 4, "steps": 6, "validate_every": 3, "warmup": 1, "threads": 1, "batch_size": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warnings.filterwarnings("ignore", module="lightning_utilities|pytorch_lightning")


def test_columns_and_rows_are_those_by_hand() -> None:
    begin = datetime.datetime(2024, 3, 1)
    hours = [h for h in range(20) if h not in (4, 5)]
    frame = pl.DataFrame(
        {
            "when": [begin + datetime.timedelta(hours=h) for h in hours] * 2,
            "shop": ["b"] * 18 + ["a"] * 18,
            "sold": [None, 1.5, *range(34)],
            "empty": [None] * 36,
        },
        strict=False,
    )
    assert describe_columns(make_table(frame)) == [
        ("when", "time", "0", "2024-03-01 to 2024-03-01 19:00:00"),
        ("shop", "text", "0", "2 different: a, b"),
        ("sold", "numbers", "1", "0 to 33"),
        ("empty", "empty", "36", ""),
    ]
    assert describe_rows(make_table(frame)) == [
        ("file", "the frame: a frame of polars, 36 rows"),
        ("time", "when, step 1 h"),
        ("series", "2, by shop: 18 to 18 rows each"),
        ("gaps", "4 steps without a row, in 2 series"),
        (
            "split by time",
            "training to 2024-03-01 14:00:00, validation to 2024-03-01 17:00:00, then test",
        ),
    ]


def test_borders_are_those_that_the_forecast_cuts_at() -> None:
    table = make_table(make_builtin().frame)
    kind = find("forecast")
    table.frame.write_csv("b.csv")
    facts = dict(kind(resolve(kind, {"data": "b.csv", "target": "load"})).facts.read)
    assert dict(describe_rows(table))["split by time"] == facts["split by time"]


def test_the_command_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    make_builtin().frame.write_csv("b.csv")
    make_waves().frame.write_csv("w.csv")
    assert main(["data", "b.csv", "--target", "load"]) == 0
    shown = capsys.readouterr().out
    for words in ("whole numbers", "2, by place: 1344 to 1344 rows", "forecast:", "season", "24"):
        assert words in shown
    assert main(["data", "w.csv", "--label", "shape", "--series", "wave"]) == 0
    assert "chirp 80, saw 80, sine 80" in capsys.readouterr().out
    assert main(["data", "b.csv"]) == 0
    assert "throughtime train forecast --data b.csv --target load" in capsys.readouterr().out
    assert main(["data", "b.csv", "--time", "tim"]) == 2
    assert "did you mean time?" in capsys.readouterr().err
    assert sorted(map(str, Path(".").iterdir())) == ["b.csv", "w.csv"]


def test_a_forecast_on_a_file_is_measured_where_it_was_not_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    frame = make_builtin().frame
    frame.write_csv("b.csv")
    run = throughtime.train("forecast", "b.csv", target="load", **SMALL)
    same = run.evaluate(frame)
    assert same == {"model": run.scores, **run.baselines}
    other = frame.with_columns(place=pl.lit("new ") + pl.col("place"))
    with pytest.warns(UserWarning, match="training had no series new town, new village; scaled"):
        figures = run.evaluate(other)
    assert figures["persistence"]["mae"] != pytest.approx(run.baselines["persistence"]["mae"])
    with pytest.raises(DataError, match="that the training did not see, and it has no such place"):
        run.evaluate(frame.filter(pl.col("time") < datetime.datetime(2025, 2, 1)))
    assert main(["evaluate", str(run.folder), "b.csv"]) == 0
    assert "b.csv: 358 windows of 24 steps; 2188 before the end" in capsys.readouterr().out


def test_classes_on_a_file_are_measured_on_new_sequences() -> None:
    frame = make_waves().frame
    run = throughtime.train("classify", frame, label="shape", series="wave", **SMALL)
    same = run.evaluate(frame)
    assert same == {"model": run.scores, **run.baselines}
    doubled = pl.concat(
        [frame, frame.with_columns(wave=pl.lit("x") + pl.col("wave"), a=-pl.col("a"))]
    )
    score, _ = run.task.measure_on(run.model, make_table(doubled))
    assert score.items == 36 + 240 and "; 204 that the training saw are left out" in score.split
    with pytest.raises(DataError, match="and row 3 of the frame has 'sinus'; did you mean sine"):
        run.evaluate(frame.with_columns(shape=pl.lit("sinus")).tail(5).with_columns(
            shape=pl.Series(["saw", "saw", "sinus", "saw", "saw"])))  # fmt: skip
    train = run.task.facts.splits["train"]
    names = frame["wave"].unique(maintain_order=True)
    with pytest.raises(DataError, match="that the training did not see, and it has none"):
        run.evaluate(frame.filter(pl.col("wave").is_in(names.gather(train).to_list())))


def test_a_task_without_files_says_so() -> None:
    task = find("latch")
    made = task(task.options(task="latch", directions=1, **_quick(task)))
    with pytest.raises(OptionError, match="of latch is measured on its own held-out items"):
        made.evaluate(made.model(), "x.csv")


def _quick(task: Any) -> dict[str, Any]:
    return {n: v for n, v in task.presets["quick"].items() if n != "directions"}


def test_unsorted_uneven_rows_are_described() -> None:
    times = np.array([0.0, 1.0, 2.51, 7.13, 7.2, 9.9371])
    frame = pl.DataFrame({"t": times[::-1], "y": times})
    rows = dict(describe_rows(make_table(frame)))
    assert rows["time"] == "t, step 1.51, uneven: each row is a step"
    assert rows["gaps"] == "the longest is 4.62"
