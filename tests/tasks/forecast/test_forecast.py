"""Forecasts: no window sees what it may not, figures by hand, a run from file to predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from throughtime.cli import main
from throughtime.errors import DataError
from throughtime.tasks.forecast import Forecast
from throughtime.tasks.forecast.ahead import measure
from throughtime.tasks.forecast.find import find_facts
from throughtime.tasks.forecast.model import pinball, season_before
from throughtime.tasks.forecast.series import Series, find_season
from throughtime.tasks.forecast.windows import ForecastRecipe
from throughtime.train.run import resolve


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weekly(days: int = 120, seed: int = 0) -> pl.DataFrame:
    """A series of one value a day that follows the week."""
    noise = np.random.default_rng(seed).standard_normal(days)
    day = np.arange(days)
    values = 10 + 3 * np.sin(2 * np.pi * day / 7) + 0.2 * noise
    dates = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 1, 1) + pl.duration(days=days - 1),
                          eager=True)  # fmt: skip
    return pl.DataFrame({"day": dates, "y": values})


def made(frame: pl.DataFrame, **options: object) -> Forecast:
    frame.write_csv("data.csv")
    given = {"data": "data.csv", "target": "y", "horizon": 5, "threads": 1, "hidden": 4, **options}
    task = Forecast(resolve(Forecast, given))
    assert isinstance(task, Forecast)
    return task


def test_what_is_found_in_a_file() -> None:
    one, two = weekly(), weekly(seed=1).with_columns(pl.col("y") * 100)
    both = pl.concat([f.with_columns(pl.lit(n).alias("shop"), pl.lit(1).alias("same"))
                      for n, f in (("a", one), ("b", two))])  # fmt: skip
    facts = made(both.with_row_index("n")).facts
    assert (facts.time, facts.series, facts.step, facts.even) == ("day", "shop", 86400, True)
    assert (facts.season, facts.inputs, facts.form) == (7, ["n"], "%Y-%m-%d")
    for name, frame in (("a", one), ("b", two)):
        inside = frame["y"].head(84)  # 120 days, twice 18 of them held out
        assert facts.scales[name][0][0] == pytest.approx(inside.mean())
        assert facts.scales[name][1][0] == pytest.approx(inside.std(ddof=0))


def test_a_window_lies_in_the_split_of_its_future_and_none_crosses_a_border() -> None:
    windows = made(weekly())._windows
    series = windows.series[0]
    ends = [0, 84, 102, 120]
    for side, split in enumerate(("train", "validation", "test")):
        at = windows.origins[split]
        assert at.tolist() == list(range(max(ends[side], windows.length), ends[side + 1] - 4))
    assert windows.dropped == 2 * 4
    inputs, truth = windows.cut(windows.origins["test"])
    first = int(windows.origins["test"][0])
    expected = (series.values[first : first + 5, 0] - windows.means[0, 0].item()) / (
        windows.deviations[0, 0].item()
    )
    assert np.allclose(truth[:, 0, 0], expected, atol=1e-6)
    assert (
        inputs[windows.length :, :, : windows.channels.width - windows.channels.known] == 0
    ).all()


def test_what_comes_later_changes_neither_scales_nor_training_windows() -> None:
    frame = weekly()
    changed = frame.with_columns(
        y=pl.when(pl.int_range(pl.len()) >= 84).then(pl.col("y") * 9).otherwise(pl.col("y"))
    )
    one = made(frame)
    before_it = one._windows.cut(one._windows.origins["train"])
    two = made(changed)
    after_it = two._windows.cut(two._windows.origins["train"])
    assert one.facts.scales == two.facts.scales and one.facts.season == two.facts.season
    assert all(torch.equal(x, y) for x, y in zip(before_it, after_it, strict=True))


def test_rows_that_are_missing_are_steps_that_are_not_seen() -> None:
    windows = made(weekly().gather([n for n in range(120) if n not in (30, 31)]))._windows
    targets, seen, gap = windows.steps[29:34, :3].T
    assert seen.tolist() == [1, 0, 0, 1, 1]
    assert targets[1] == targets[2] == targets[0]
    assert gap.tolist() == pytest.approx(np.log1p([1, 1, 2, 3, 1]) - np.log(2))
    assert windows.truth[30:32].isnan().all() and len(windows.truth) == 120


def test_the_season_is_the_first_dip() -> None:
    for lag in (5, 24):
        values = np.sin(2 * np.pi * np.arange(400) / lag)[:, None]
        frame = pl.DataFrame({"y": values[:, 0]})
        recipe = ForecastRecipe(data="x.csv", target="y", horizon=5)
        frame.write_csv("x.csv")
        assert find_facts(recipe).season == lag
    ramp = make_ramp(400)
    assert find_season([ramp], [300.0], 100) == 1


def make_ramp(count: int) -> Series:
    times = np.arange(count, dtype=np.float64)
    return Series("", times, times[:, None], count)


def test_the_value_a_season_before_is_known_at_every_step_ahead() -> None:
    past = torch.arange(10.0)[:, None, None]
    assert season_before(past, 5, 3).flatten().tolist() == [7, 8, 9, 7, 8]
    assert season_before(past, 3, 1).flatten().tolist() == [9, 9, 9]
    assert season_before(past, 12, 11).flatten().tolist() == [9, *range(10), 9]


def test_the_pinball_loss_is_its_definition() -> None:
    answers = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    truth = torch.tensor([2.5, torch.nan])
    by_hand = (0.1 * 1.5 + 0.5 * 0.5 + 0.1 * 0.5) / 3  # (1 - 0.9) (3 - 2.5)
    assert float(pinball(answers, truth)) == pytest.approx(by_hand)


def test_figures_are_those_of_a_plain_loop() -> None:
    windows = made(weekly())._windows
    origins = windows.origins["test"]
    _, truth = windows.cut(origins)
    answers = torch.stack([truth - 1, truth + 0.5, truth + 1], -1)
    figures = measure(windows, origins, answers)
    deviation = windows.deviations[0, 0].item()
    series = windows.series[0].values[:84, 0]
    naive = np.abs(series[7:] - series[:-7]).mean()
    assert figures["mae"] == figures["rmse"] == pytest.approx(0.5 * deviation)
    assert figures["mase"] == pytest.approx(0.5 * deviation / naive, rel=1e-5)
    assert figures["coverage_80"] == 1


def test_the_baselines_are_what_they_say() -> None:
    task = made(weekly())
    windows, figures = task._windows, task.baselines("test")
    series = windows.series[0].values[:, 0]
    for name, lag in (("persistence", 1), ("seasonal naive", 7)):
        errors = []
        for at in windows.origins["test"].tolist():
            for step in range(5):
                back = series[at - 1] if lag == 1 else series[at + step - 7]
                errors.append(abs(series[at + step] - back))
        assert figures[name]["mae"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert figures["linear on lags"]["mae"] < figures["seasonal naive"]["mae"]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"target": "z"}, "--target must name a column of data.csv, which has day, y, got 'z'"),
        ({}, {"target": "Y"}, "did you mean y?"),
        ({}, {"target": ""}, "a forecast needs --target, a column of data.csv, which has day, y"),
        ({}, {"known": "y"}, "'y' is named by --target and --known; take it out of one"),
        ({}, {"horizon": 40}, "must have at least 4 horizons, 160 steps, and it has 120"),
        ({"s": pl.int_range(120) > 0}, {"series": "s"}, "has 1, in 1 rows; take the series out"),
        ({}, {"length": 100}, "training part of 84 steps, so be at most 79, got 100"),
        ({"y": pl.lit(5)}, {}, "column y of data.csv must vary to be forecast, and it is 5 in eve"),
        ({"y": pl.lit(None)}, {}, "must have values to forecast, and all 120 rows are empty there"),
        ({"day": pl.lit("2024-01-01")}, {}, "has 2024-01-01 in line 2 of data.csv and in line 3"),
        ({"day": pl.lit("soon")}, {"time": "day"}, "line 2 of data.csv has 'soon', which is none"),
        ({"y": pl.col("y").round(2).cast(str) + "a"}, {}, "numbers, and line 2 of data.csv has '"),
        ({"x": pl.col("y").shift(-3)}, {}, "must not tell y, and it copies it 3 steps before its"),
        ({"x": 2 * pl.col("y")}, {"known": "x"}, "must not tell y, and it copies it at its own s"),
    ],
)
def test_a_wrong_file_or_option_is_one_sentence_and_makes_nothing(
    change: dict[str, pl.Expr], options: dict[str, str], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    weekly().with_columns(**change).write_csv("data.csv")
    given = {"data": "data.csv", "target": "y", "horizon": "5", **options}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert main(["train", "forecast", *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1
    assert not Path("runs").exists()


def test_known_columns_that_copy_no_target_pass() -> None:
    frame = weekly().with_columns(pl.col("y").shift(5).alias("x"), z=pl.int_range(pl.len()) % 2)
    assert made(frame, known="z").facts.inputs == ["x"]
    with pytest.raises(DataError, match="copies it 4 steps after its time"):
        made(frame.with_columns(x=pl.col("y").shift(4)), known="x")


def test_from_a_file_to_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    frame = weekly().with_columns(pl.col("day").dt.weekday().alias("weekday"))
    frame.write_csv("data.csv")
    flags = "--target y --known weekday --horizon 5 --hidden 4 --steps 40 --validate-every 20"
    assert main(["train", "forecast", "--data", "data.csv", *flags.split()]) == 0
    shown = capsys.readouterr().out
    for words in ("day, step 1 d", "7 steps", "seasonal naive", "linear on lags", "coverage_80"):
        assert words in shown
    results = json.loads(Path("runs/forecast-1/results.json").read_text())
    assert list(results)[:6] == ["task", "metrics", "baselines", "split", "seconds", "parameters"]
    names = list(results["metrics"])
    assert names[0] == "mae" and results["task"] == "forecast"
    assert all(list(figures) == names for figures in results["baselines"].values())
    beaten = results["metrics"]["mae"] >= min(b["mae"] for b in results["baselines"].values())
    assert ("The net does not beat the best baseline" in shown) == beaten

    Path("data.csv").unlink()  # a run needs it no longer
    ahead = pl.DataFrame({"day": [frame["day"][-1]], "weekday": [1]}).select(
        pl.col("day").dt.offset_by("1d"), y=pl.lit(None), weekday=pl.col("weekday").cast(pl.Int8)
    )
    pl.concat([frame, ahead], how="vertical_relaxed").write_parquet("new.parquet")
    assert main(["predict", "runs/forecast-1", "new.parquet", "--out", "out.csv"]) == 0
    assert "up to 4 steps ahead have no row with weekday" in capsys.readouterr().err
    out = pl.read_csv("out.csv")
    assert out.columns == ["day", "y", "y_10", "y_90"]
    assert out["day"].to_list() == [f"2024-04-{30 + n:02}" if n < 1 else f"2024-05-{n:02}"
                                    for n in range(5)]  # fmt: skip
    assert (out["y_10"] <= out["y"]).all() and (out["y"] <= out["y_90"]).all()
    frame.drop("weekday").write_csv("less.csv")
    assert main(["predict", "runs/forecast-1", "less.csv"]) == 2
    assert "less.csv must have the column weekday" in capsys.readouterr().err
    frame.head(9).write_csv("less.csv")
    assert main(["predict", "runs/forecast-1", "less.csv"]) == 2
    assert "must have the 10 steps that a forecast reads, and it has 9" in capsys.readouterr().err


def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped() -> None:
    weekly().select("y").write_csv("data.csv")  # nothing is known ahead
    usual = "--target y --horizon 5 --hidden 4 --schedule constant --validate-every 4 --threads 1"
    for out, steps in (("one", 4), ("two", 8)):
        words = f"train forecast --data data.csv {usual} --out {out} --steps {steps}"
        assert main(words.split()) == 0
    assert main("train forecast --resume --out one --steps 8".split()) == 0
    one, two = (Path(out, "weights.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two


def test_a_run_finds_its_file_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my files", "elsewhere").mkdir(parents=True)
    weekly().select("y").head(60).write_csv("my files/a.csv")
    weekly().select("y").tail(60).write_csv("my files/b.csv")
    options = "--target y --horizon 5 --hidden 4 --threads 1 --steps 1 --out".split()
    files = ("my files/a.csv", "my files/a.csv, my files/b.csv", "my files/*.csv")
    for number, data in enumerate(files):
        monkeypatch.chdir(tmp_path)
        out = f"runs/{number}"
        assert main(["train", "forecast", "--data", data, *options, out]) == 0
        capsys.readouterr()
        assert main(["evaluate", out]) == 0
        here = capsys.readouterr().out
        monkeypatch.chdir("my files/elsewhere")
        assert main(["evaluate", f"../../{out}"]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == here.splitlines()[1:]


def test_a_file_that_was_changed_since_is_told() -> None:
    task = made(weekly())
    weekly(seed=2).write_csv("data.csv")
    with pytest.raises(DataError, match="must be as it was when the run began, and it was changed"):
        task.epoch(0)


def test_damaged_facts_are_told() -> None:
    recipe = made(weekly()).recipe
    damaged = replace(recipe, facts={**recipe.facts, "season": "seven"})
    with pytest.raises(ValueError, match="facts must hold what this version finds in a file, and "):
        Forecast(damaged).facts  # noqa: B018


def test_a_series_that_the_training_had_not_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = weekly().with_columns(shop=pl.lit("old")), weekly(seed=1)
    pl.concat([old, new.with_columns(shop=pl.lit("other"))]).write_csv("old.csv")
    words = "--target y --horizon 5 --steps 1 --hidden 4 --threads 1 --out run".split()
    assert main(["train", "forecast", "--data", "old.csv", *words]) == 0
    new.with_columns(shop=pl.lit("new")).write_csv("new.csv")
    capsys.readouterr()
    for command in ("evaluate", "predict"):
        assert main([command, "run", "new.csv"]) == 0
        said = capsys.readouterr().err
        assert "note: new.csv: training had no series new; scaled as all of the training" in said
