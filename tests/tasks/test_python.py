"""A run from Python: files and frames in, figures, answers and the same run read back."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import throughtime
from throughtime.errors import DataError, OptionError, RunError
from throughtime.tasks.classify.find import make_waves
from throughtime.tasks.tables import make_table, write_file

SMALL: dict[str, Any] = {
    "hidden": 4, "steps": 6, "validate_every": 3, "warmup": 1, "threads": 1, "batch_size": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warnings.filterwarnings("ignore", module="lightning_utilities|pytorch_lightning")


def loads(rows: int = 200) -> pl.DataFrame:
    hours = np.arange(rows)
    begin = datetime.datetime(2025, 1, 1)
    values = np.sin(hours / 4) + 0.1 * np.random.default_rng(0).standard_normal(rows)
    return pl.DataFrame(
        {"at": [begin + datetime.timedelta(hours=int(h)) for h in hours], "load": values.round(3)}
    )


def test_a_run_from_a_file_from_polars_and_from_pandas_is_one_run() -> None:
    loads().write_parquet("loads.parquet")
    pandas = pd.DataFrame(loads().to_dict(as_series=False))
    runs = [
        throughtime.train("forecast", data=data, target="load", horizon=4, **SMALL)
        for data in (Path("loads.parquet"), loads(), loads().lazy(), pandas, pandas.set_index("at"))
    ]
    assert [run.scores for run in runs[1:]] == [runs[0].scores] * 4
    assert list(runs[0].scores)[0] == "mae" and "persistence" in runs[0].baselines
    ahead = [run.predict(loads()) for run in runs]
    assert all(one.equals(ahead[0]) for one in ahead) and len(ahead[0]) == 4
    back = runs[0].predict(pandas)
    assert isinstance(back, pd.DataFrame) and back["load"].tolist() == ahead[0]["load"].to_list()
    assert runs[0].predict("loads.parquet").equals(ahead[0])
    assert len({*Path("runs").glob("frame-*.parquet")}) == 1
    again = throughtime.load(runs[1].folder)
    assert again.scores == runs[0].scores and again.predict(loads()).equals(ahead[0])
    assert again.model.training is False and again.recipe == runs[1].recipe
    assert repr(again).startswith("<run of forecast in runs/forecast-2: mae ")


def test_a_run_goes_on_from_python() -> None:
    run = throughtime.train("forecast", loads(), out="run", target=["load"], horizon=4, **SMALL)
    assert run.results["steps"] == 6
    longer = throughtime.train("forecast", out="run", resume=True, steps=9)
    assert longer.results["steps"] == 9


def test_items_are_answered_and_the_package_stays_a_package() -> None:
    from throughtime.train.loop import fit

    assert callable(fit) and callable(throughtime.train)
    run = throughtime.train("classify", make_waves().frame, label="shape", series="wave", **SMALL)
    out = run.predict(make_waves().frame.drop("shape"))
    assert out.columns == ["wave", "shape", "p_chirp", "p_saw", "p_sine"]


def test_loading_and_predicting_import_no_lightning() -> None:
    run = throughtime.train("forecast", loads(), target="load", horizon=4, **SMALL)
    loads().write_parquet("loads.parquet")
    code = (
        "import sys, throughtime\n"
        f"run = throughtime.load({str(run.folder)!r})\n"
        "run.predict('loads.parquet'), run.scores, run.baselines\n"
        "print(*{n.partition('.')[0] for n in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pytorch_lightning", "rich", "plotly", "pandas"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("data", "options", "kind", "said"),
    [
        (loads(), {"target": "laod"}, DataError, "got 'laod'; did you mean load?"),
        (loads().head(0), {"target": "load"}, DataError, "must hold rows and columns, got 0 x 2"),
        ([1, 2], {"target": "load"}, OptionError, "must be a file or a frame of polars or pandas"),
        (loads(), {"tarjet": "load"}, OptionError, "has no option tarjet.*did you mean target"),
        (loads(), {"target": "load", "hidden": 0}, OptionError, "hidden must be a whole number"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(
    data: Any, options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        throughtime.train("forecast", data, **SMALL | {"horizon": 4} | options)
    assert not list(Path(".").rglob("*.parquet"))


def test_damaged_figures_are_told() -> None:
    run = throughtime.train("forecast", loads(), target="load", horizon=4, **SMALL)
    (run.folder / "results.json").write_text(json.dumps([]))
    with pytest.raises(RunError, match="must hold the figures of the run, and it does not"):
        _ = throughtime.load(run.folder).scores


def test_a_frame_of_pandas_is_taken_column_by_column() -> None:
    stamps = pd.to_datetime(["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00"])
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, None, 3], dtype="Int64"),
            "text": ["a", None, "c"],
            "digits": ["1", "2", "3"],
            "kind": pd.Categorical(["u", "v", "u"]),
            "zone": stamps.tz_localize("Europe/Berlin"),
            7: [1.5, float("nan"), 2.0],
        },
        index=stamps,
    )
    table = make_table(frame)
    assert table.frame.columns == ["time", "whole", "text", "digits", "kind", "zone", "7"]
    assert table.frame["whole"].to_list() == [1, None, 3]
    assert table.frame["text"].to_list() == ["a", None, "c"]
    assert table.frame["digits"].to_list() == [1, 2, 3]
    assert table.frame["7"].to_list() == [1.5, None, 2.0]
    assert str(table.frame["zone"][0]) == "2023-12-31 23:00:00"
    assert table.place(1) == "row 2 of the frame"
    with pytest.raises(DataError, match="must have columns of numbers, texts or dates"):
        make_table(pd.DataFrame({"odd": [object(), object()]}))


def test_a_frame_that_was_half_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.write_bytes

    def write_half(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="No space left"):
            write_file(loads(), tmp_path)
    assert not list(tmp_path.glob("frame-*"))
    path, is_new = write_file(loads(), tmp_path)
    assert is_new and pl.read_parquet(path).equals(loads())
