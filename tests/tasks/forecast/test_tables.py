"""Files as tables: what is inferred, and what is wrong in one sentence with its row."""

from __future__ import annotations

import re
from datetime import date, timedelta
from datetime import time as clock
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from throughtime.errors import DataError
from throughtime.tasks.forecast.series import find_rows, find_series
from throughtime.tasks.tables import pieces
from throughtime.tasks.tables.clock import find_step, find_time, format_time, read_times
from throughtime.tasks.tables.read import hash_files, read


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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_lines_are_no_rows_and_the_others_keep_their_numbers(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["t,y", "", "1,2.5", "", "", "2,3.5", ",", "3,x", "", "4,1", ""]
    for size in (pieces._PIECE, 9):  # in one piece, and in many, some of which begin empty
        monkeypatch.setattr(pieces, "_PIECE", size)
        Path("a.csv").write_text(end.join(lines), newline="")
        table = read("a.csv")
        assert table.frame["t"].to_list() == [1, 2, 3, 4]
        assert [table.place(row).split()[1] for row in range(4)] == ["3", "6", "8", "10"]
        with pytest.raises(DataError, match="line 8 of a.csv has 'x'"):
            table.numbers("y")
    Path("b.csv").write_text("t,y\n1,2\n2,3\n\n")
    assert read("b.csv").lines is None, "nothing after the last row counts"


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
        ("a.csv", b"t,y\n", "a.csv must hold rows, and it has none after its column names"),
        ("a.csv", b"t,y\n1,2\n1,2,3\n", "must have 2 cells, as its first has, and line 3 has 3"),
        ("a.csv", b"t,y\n1,2\n1,\xe9\n", "a.csv must be UTF-8, and line 3 is not; convert it"),
        ("a.csv", b"t,t\n1,2\n", "every column of a.csv must have its own name, got 't' twice"),
        ("a.jsonl", b'{"t":1}\nnope\n', "a.jsonl must be a JSON object, and line 2 is 'nope'"),
        ("a.parquet", b"nope", "a.parquet must be a Parquet file, and polars cannot read it"),
        ("a.xls", b"nope", "a file of data must end in .csv, .tsv, .txt, .parquet, .jsonl, "),
        (
            "a.csv",
            "t,y\n1,2\n".encode("utf-16"),
            "a.csv must be UTF-8, and line 1 is not; convert it, say with iconv -f utf-16 -t utf-8",
        ),
        (
            "a.jsonl",
            b'{"y":1}\n{"y":NaN}\n',
            "every line of a.jsonl must be a JSON object, and line 2 has NaN, which JSON has not",
        ),
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
        (["19-Sep-03", "20-Sep-03", "21-Sep-03"], "2003-09-19", 86400),
        (["Jan-1-1995", "Jan-2-1995", "Jan-3-1995"], "1995-01-01", 86400),
        (["January 30 2024", "January 31 2024"], "2024-01-30", 86400),
        (["31 Jan 2024 00:30", "31 Jan 2024 01:30"], "2024-01-31 00:30:00", 3600),
        (["9/30/24", "10/1/24"], "2024-09-30", 86400),
        (["1949-11", "1949-12", "1950-01"], "1949-11-01", 1),
        (["2024-01-31", "2024-02-29", "2024-03-31"], "2024-01-31", 1),
        (["01/31/2024 11:30 PM", "02/01/2024 12:30 AM"], "2024-01-31 23:30:00", 3600),
        (["1/31/2024 9:00:30 pm", "1/31/2024 10:00:30 pm"], "2024-01-31 21:00:30", 3600),
        (["2024-01-01 00:00:00 UTC", "2024-01-01 01:00:00 UTC"], "2024-01-01", 3600),
        (["2024-01-01 00:00:00+00", "2024-01-01 01:00:00+00"], "2024-01-01", 3600),
        (["2024-01-01 02:00 +0200", "2024-01-01 03:00 +0200"], "2024-01-01", 3600),
        (["2024-01-01T05:30:00+05:30", "2024-01-01T06:00:00+05:30"], "2024-01-01", 1800),
        (["2023-W52", "2024-W01", "2024-W02"], "2023-12-25", 7 * 86400),
        (["2023Q4", "2024Q1", "2024Q2"], "2023-10-01", 3),
        (["2023-Q4", "2024-Q1"], "2023-10-01", 3),
        (["Nov 2023", "Dec 2023", "January 2024"], "2023-11-01", 1),
        (["11/2023", "12/2023", "01/2024"], "2023-11-01", 1),
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
    assert format_time(float(times.values[0]), times.form) == first
    last = times.values[-1] + step
    if first == "2024-01-31":
        assert format_time(float(last), times.form) == "2024-04-30"


def test_types_of_a_file_that_are_no_numbers_and_no_dates() -> None:
    frame = pl.DataFrame(
        {
            "time": [timedelta(minutes=90), timedelta(hours=3)],
            "clock": [clock(1), clock(2)],
            "cost": [Decimal("1.25"), None],
            "lists": [[1.0], [2.0]],
            "objects": [{"a": 1}, {"a": 2}],
            "kind": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])),
            "day": [date(2024, 1, 1), date(2024, 1, 2)],
        }
    )
    frame.write_parquet("a.parquet")
    table = read("a.parquet")
    assert find_time(table, "", []) == "day"
    assert find_time(table, "", ["day"]) == "time"
    assert read_times(table, "time").values.tolist() == [5400.0, 10800.0]
    assert table.frame["cost"].to_list() == [1.25, None]
    shown = {"lists": "[1.0]", "objects": "{'a': 1}", "kind": "'a'", "day": "datetime.date(2024"}
    for name, words in shown.items():
        said = f"column {name} must hold numbers, and row 1 of a.parquet has {words}"
        with pytest.raises(DataError, match=re.escape(said)):
            table.numbers(name)
    for name in ("lists", "objects"):
        with pytest.raises(DataError, match=f"column {name} must hold one text or number a row"):
            table.texts(name)
    with pytest.raises(DataError, match="column clock must hold dates of one form"):
        read_times(table, "clock")


def test_words_of_spreadsheets_are_missing_and_numbers_that_overflow_are_refused() -> None:
    Path("a.csv").write_text("y\n1\n#N/A\n<NA>\nn/a\n1e200\n")
    table = read("a.csv")
    assert table.frame["y"].null_count() == 3
    with pytest.raises(
        DataError, match=r"at most 1e\+100 in size, and line 6 of a.csv has 1e\+200"
    ):
        table.numbers("y")


def test_a_date_that_is_none_is_told_with_its_row() -> None:
    Path("a.csv").write_text("day,y\n2024-01-30,1\n2024-01-32,2\n")
    with pytest.raises(DataError, match="line 3 of a.csv has '2024-01-32', which is none of %Y"):
        read_times(read("a.csv"), "day")


def test_steps_that_fit_no_grid_are_uneven() -> None:
    assert find_step(np.array([1.0, 2.0, 1.0, 5.0])) == (1.0, True)
    assert find_step(np.array([1.0, 1.3, 2.7])) == (1.3, False)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 40)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_pieces_are_the_whole(small_pieces: None, end: str) -> None:
    rows = ["n,x,y,word,mixed,none", *(f"{n},{n / 4}, {n}.5 ,w{n % 3},{n},NA" for n in range(30))]
    rows += ["30,0.25,?,wé,007a,", "", "31,2,1e3,w,08,nan"]
    Path("a.csv").write_bytes(end.join(rows).encode())
    frame = read("a.csv").frame
    assert frame.shape == (32, 6)
    assert frame["n"].to_list() == [*range(30), 30, 31] and frame["n"].dtype == pl.Int64
    assert frame["x"].to_list() == [*(n / 4 for n in range(30)), 0.25, 2]
    assert frame["y"].to_list() == [*(n + 0.5 for n in range(30)), None, 1000]
    assert frame["word"].to_list() == [*(f"w{n % 3}" for n in range(30)), "wé", "w"]
    # a word in its last piece makes it text, each cell as it is written
    assert frame["mixed"].to_list() == [*map(str, range(30)), "007a", "08"]
    assert frame["none"].null_count() == 32 and frame["none"].dtype == pl.String


def test_decimal_commas_and_points_in_two_pieces_are_text(small_pieces: None) -> None:
    rows = ["t;y;z", *(f"{n};{n},5;{n},5" for n in range(20)), "20;3;2.5"]
    Path("a.csv").write_text("\n".join(rows))
    frame = read("a.csv").frame
    assert frame["y"].to_list() == [*(n + 0.5 for n in range(20)), 3]
    assert frame["z"].to_list() == [*(f"{n},5" for n in range(20)), "2.5"]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("1,2,3", "every line of a.csv must have 2 cells, as its first has, and line 31 has 3"),
        ("1", "every line of a.csv must have 2 cells, as its first has, and line 31 has 1"),
        ('"1,2"', "every line of a.csv must have 2 cells, as its first has, and line 31 has 1"),
        ("1,\xe9", "a.csv must be UTF-8, and line 31 is not"),
    ],
)
def test_what_is_wrong_in_a_later_piece_names_its_line(
    small_pieces: None, last: str, said: str
) -> None:
    rows = ["t,y", *(f"{n},{n}" for n in range(29)), last]
    Path("a.csv").write_bytes("\n".join(rows).encode("latin1"))
    with pytest.raises(DataError, match=said):
        read("a.csv")


def test_quoted_cells_may_hold_delimiters_and_ends_of_lines() -> None:
    Path("a.csv").write_text('t,y,note\n1,2,"a, b"\n2,3,"c\nd"\n')
    assert read("a.csv").frame["note"].to_list() == ["a, b", "c\nd"]


def test_several_files_are_one_table_and_rows_are_told_by_their_file() -> None:
    for name, rows in (("a1", "t,y\n1,2\n2,3"), ("a2", "y,t\n4,3\n5,4"), ("b", "t,y\n5,0.5")):
        Path(f"{name}.csv").write_text(rows)
    table = read("a*.csv")
    assert table.frame.rows() == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert [table.place(row) for row in (1, 2)] == ["line 3 of a1.csv", "line 2 of a2.csv"]
    assert table.form.startswith("2 files, text")
    assert read("a?.csv, b.csv").frame["y"].to_list() == [2, 3, 4, 5, 0.5]
    assert hash_files("a1.csv,b.csv") != hash_files("a2.csv,b.csv") != hash_files("a2.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("t,z\n1,2", "b.csv must have the columns of a.csv, t, y, and its line 1 has no column y"),
        ("t,y,z\n1,2,3", "must have the columns of a.csv, t, y, and its line 1 has a column z be"),
        (
            "t,y\n3,4\n4,x",
            "must hold numbers in every file, as in a.csv, and line 3 of b.csv has '",
        ),
        ("t,y\n2,4", "in line 3 of a.csv and in line 2 of b.csv"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(content: str, said: str) -> None:
    Path("a.csv").write_text("t,y\n1,2\n2,3\n")
    Path("b.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        find_rows(read("?.csv"), "t", "")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_that_matches_is_told() -> None:
    with pytest.raises(DataError, match=r"files that match c\*.csv must be there, and none is"):
        read("c*.csv")


def test_rows_of_series_in_any_order() -> None:
    Path("a.csv").write_text("t,s,y\n2,b,1\n1,a,2\n1,b,3\n3,a,4\n2,a,5\n")
    places = find_rows(read("a.csv"), "t", "s").places
    assert {name: rows.tolist() for name, rows in places.items()} == {"b": [2, 0], "a": [1, 4, 3]}


def test_words_that_stand_often_are_numbers_inside_and_words_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [f"{n // 2},{'ab'[n % 2]},{n % 7}" for n in range(400)]
    Path("a.csv").write_text("\n".join(["t,s,y", *rows]))
    whole = find_rows(read("a.csv"), "t", "s").places
    monkeypatch.setattr(pieces, "_PIECE", 1000)
    table = read("a.csv")
    assert table.frame["s"].dtype == pl.Categorical and table.texts("s") == ["a", "b"] * 200
    found = find_rows(table, "t", "s").places
    assert list(found) == list(whole) == ["a", "b"]
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert find_series(table, "t", ["y"]) == "s"


def test_numbers_are_days_only_where_each_is_one() -> None:
    Path("a.csv").write_text("day,n,y\n20240228,20240228,1\n20240229,20240229,2\n")
    table = read("a.csv")
    assert find_time(table, "", []) == "day" and read_times(table, "n").form == "a number"
    assert read_times(table, "day").values[1] - read_times(table, "day").values[0] == 86400
    Path("a.csv").write_text("day,y\n20240228,1\n20240230,2\n")
    assert read_times(read("a.csv"), "day").form == "a number"


def test_a_quarter_is_no_series() -> None:
    Path("a.csv").write_text("year,quarter,y\n" + "".join(
        f"{2000 + n // 4},{1 + n % 4},{n}\n" for n in range(40)))  # fmt: skip
    table = read("a.csv")
    assert find_series(table, "year", ["y"]) == ""
    with pytest.raises(DataError, match="or all columns of the time with --time"):
        find_rows(table, "year", "")
