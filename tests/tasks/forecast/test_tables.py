"""Files as tables: what is inferred, and what is wrong in one sentence with its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from throughtime.errors import DataError
from throughtime.tasks.tables.clock import find_step, find_time, read_times, written
from throughtime.tasks.tables.read import read


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "t,y\n1,2.5\n2,\n3,4\n"),
        ("a.csv", "\ufefft;y\n1;2,5\n2;NA\n3;4,0\n"),
        ("a.tsv", "t\ty\n1\t2.5\n2\tnan\n3\t4\n"),
        ("a.txt", "t|y\n1|2.5\n2| \n\n3|4\n"),
        ("a.csv", 't,y\n"1","2.5"\n2,\n3,4'),
        ("a.jsonl", '{"t":1,"y":2.5}\n{"t":2,"y":null}\n{"t":3,"y":4}\n'),
    ],
)
def test_every_form_gives_the_same_table(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")
    table = read(name)
    assert table.frame.columns == ["t", "y"]
    assert np.array_equal(table.numbers("y"), [2.5, np.nan, 4.0], equal_nan=True)
    assert table.frame["t"].to_list() == [1, 2, 3]


def test_parquet_and_a_file_without_a_header() -> None:
    pl.DataFrame({"t": [1, 2], "y": [0.5, float("nan")]}).write_parquet("a.parquet")
    assert read("a.parquet").frame["y"].to_list() == [0.5, None]
    Path("a.csv").write_text("1,2\n3,4\n")
    table = read("a.csv")
    assert table.frame.rows() == [(1, 2), (3, 4)]
    assert table.place(1) == "line 2 of a.csv"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "a.csv must hold rows, and it is empty"),
        ("a.csv", b"t,y\n", "a.csv must hold rows, and it has none behind its column names"),
        ("a.csv", b"t,y\n1,2\n1,2,3\n", "must have 2 cells, as its first has, and line 3 has 3"),
        ("a.csv", b"t,y\n1,2\n1,\xe9\n", "a.csv must be UTF-8, and line 3 is not; convert it"),
        ("a.csv", b"t,t\n1,2\n", "every column of a.csv must have its own name, got 't' twice"),
        ("a.jsonl", b'{"t":1}\nnope\n', "a.jsonl must be a JSON object, and line 2 is 'nope'"),
        ("a.parquet", b"nope", "a.parquet must be a Parquet file, and polars cannot read it"),
        ("a.xls", b"nope", "a file of data must end in .csv, .tsv, .txt, .parquet, .jsonl, "),
    ],
)
def test_a_wrong_file_is_one_sentence(name: str, content: bytes, said: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "first", "step"),
    [
        (["2024-01-01 00:30", "2024-01-01 01:00"], "2024-01-01 00:30:00", 1800),
        (["2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"], "2024-01-01", 3600),
        (["2024-01-01T02:00:00+02:00", "2024-01-01T03:00:00+02:00"], "2024-01-01", 3600),
        (["30.12.2023", "31.12.2023", "01.01.2024"], "2023-12-30", 86400),
        (["30/12/2023", "31/12/2023", "01/01/2024"], "2023-12-30", 86400),
        (["12/30/2023", "12/31/2023", "01/01/2024"], "2023-12-30", 86400),
        (["01/02/2024", "02/02/2024", "03/02/2024"], "2024-02-01", 86400),
        (["1949-11", "1949-12", "1950-01"], "1949-11-01", 1),
        (["2024-01-31", "2024-02-29", "2024-03-31"], "2024-01-31", 1),
    ],
)
def test_dates_are_read_by_the_form_that_steps_evenly(
    texts: list[str], first: str, step: float
) -> None:
    Path("a.csv").write_text("\n".join(["y,when", *(f"1,{text}" for text in texts)]))
    table = read("a.csv")
    assert find_time(table, "", ["y"]) == "when"
    times = read_times(table, "when")
    assert find_step(np.diff(times.values)) == (step, True)
    assert written(float(times.values[0]), times.form) == first
    last = times.values[-1] + step
    if first == "2024-01-31":
        assert written(float(last), times.form) == "2024-04-30"


def test_a_date_that_is_none_is_told_with_its_row() -> None:
    Path("a.csv").write_text("day,y\n2024-01-30,1\n2024-01-32,2\n")
    with pytest.raises(DataError, match="line 3 of a.csv has '2024-01-32', which is none of %Y"):
        read_times(read("a.csv"), "day")


def test_steps_that_fit_no_grid_are_uneven() -> None:
    assert find_step(np.array([1.0, 2.0, 1.0, 5.0])) == (1.0, True)
    assert find_step(np.array([1.0, 1.3, 2.7])) == (1.3, False)
