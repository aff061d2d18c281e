"""A time that stands in two columns or more: found, joined, and what is wrong with it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from throughtime.cli import main
from throughtime.errors import DataError
from throughtime.tasks.forecast.find import find_facts
from throughtime.tasks.forecast.windows import ForecastRecipe
from throughtime.tasks.tables.clock import find_time, merge_time, read_times
from throughtime.tasks.tables.read import read


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "time", "first", "last"),
    [
        ("year,quarter,y\n1959.0,4.0,1\n1960.0,1.0,2\n", "year,quarter", (1959, 10), (1960, 1)),
        ("y,Year,Qtr\n1,2001,Q1\n2,2001,Q2\n", "Year,Qtr", (2001, 1), (2001, 4)),
        ("year,month,y\n2001,12,1\n2002,1,2\n", "year,month", (2001, 12), (2002, 1)),
        ("month,year,y\nDec,2001,1\nJan,2002,2\n", "year,month", (2001, 12), (2002, 1)),
        ("year,mon,y\n2001,M12,1\n2002,M01,2\n", "year,mon", (2001, 12), (2002, 1)),
        ("year,week,y\n2004,53,1\n2005,1,2\n", "year,week", (2004, 12, 27), (2005, 1, 3)),
        (
            "No,year,month,day,hour,y\n1,2010,1,1,23,5\n2,2010,1,2,0,6\n",
            "year,month,day,hour", (2010, 1, 1, 23), (2010, 1, 2),
        ),
        (
            "date,time,y\n2024-01-31,23:30,1\n2024-02-01,00:00,2\n2024-02-01,00:30,3\n",
            "date,time", (2024, 1, 31, 23, 30), (2024, 2, 1, 0, 30),
        ),
        (
            "Date;Time;y\n10/03/2004;18.00.00;2,6\n10/03/2004;19.00.00;2\n13/03/2004;0.00.00;1\n",
            "Date,Time", (2004, 3, 10, 18), (2004, 3, 13),
        ),
        (
            "day,clock,y\n2024-01-31,11:30 PM,1\n2024-01-31,11:45 PM,2\n2024-02-01,12:15 AM,2\n",
            "day,clock", (2024, 1, 31, 23, 30), (2024, 2, 1, 0, 15),
        ),
        (
            "date,hour,y\n2024-01-31,23,1\n2024-01-31,24,2\n2024-02-01,1,3\n",
            "date,hour", (2024, 1, 31, 23), (2024, 2, 1, 1),
        ),
    ],
)  # fmt: skip
def test_it_is_found_and_joined(
    text: str, time: str, first: tuple[int, ...], last: tuple[int, ...]
) -> None:
    Path("a.csv").write_text(text)
    table = read("a.csv")
    assert find_time(table, "", ["y"]) == time
    joined = merge_time(table, time)
    assert not {*time.split(",")} & {*joined.frame.columns}
    full = [datetime(*(*end, 1)[:3], *end[3:]) for end in (first, last)]  # type: ignore[arg-type]
    assert [joined.frame[time][0], joined.frame[time][-1]] == full
    assert read_times(joined, time).values.tolist() == sorted(read_times(joined, time).values)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("date,time,y\n2024-01-01,3,1\n2024-01-02,7,2\n", "date"),  # stands once
        ("date,time,y\n2024-01-01,fast,1\n2024-01-01,slow,2\n", "date"),
        ("date,time,y\n2024-01-01 10:00,1:00,1\n2024-01-01 10:00,2:00,2\n", "date"),
        ("year,y\n2001,1\n2002,2\n", "year"),
        ("year,hour,y\n2001,1,3\n2002,2,4\n", "year"),  # no day between
        ("year,month,y\n2001,1,3\n2002,13,4\n", "year"),
        ("month,y\n1,3\n2,4\n", "month"),
    ],
)
def test_other_columns_are_no_part_of_it(text: str, time: str) -> None:
    Path("a.csv").write_text(text)
    assert find_time(read("a.csv"), "", ["y"]) == time


@pytest.mark.parametrize(
    ("text", "time", "said"),
    [
        ("year,quarter,y\n2001,4,1\n2001,5,2\n", "year,quarter",
         "columns year,quarter must make a time in every row, and line 3 of a.csv has 2001, 5"),
        ("year,month,day,y\n2001,2,28,1\n2001,2,29,2\n", "year,month,day",
         "line 3 of a.csv has 2001, 2, 29; mend it"),
        ("date,time,y\n2024-01-01,10:00,1\n2024-01-01,,2\n", "date,time",
         "line 3 of a.csv has 2024-01-01, None"),
        ("year,month,y\n2001,1,1\n", "year,mont", "column mont of the time year,mont, and it has "
         "year, month, y; did you mean month?"),
        ("a,b,y\n2001,1,1\n", "a,b", "--time of several columns must name a date and a time of "
         "day, or year with its quarter"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_row(text: str, time: str, said: str) -> None:
    Path("a.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        merge_time(read("a.csv"), time)
    assert said in str(caught.value)


def test_columns_that_options_name_are_no_part_of_it() -> None:
    Path("a.csv").write_text("year,month,y\n2001,1,1\n2001,2,2\n2001,3,4\n")
    with pytest.raises(DataError, match="a column must have one role, and 'month' is named by"):
        find_facts(ForecastRecipe(data="a.csv", target="y", known="month", time="year,month"))


def make_quarters(count: int, first: int = 1990) -> pl.DataFrame:
    number = list(range(count))
    return pl.DataFrame({
        "year": [first + n // 4 for n in number],
        "quarter": [float(n % 4 + 1) for n in number],
        "y": [10 + n / 4 + (3, -1, 2, -4)[n % 4] + n * 7 % 5 / 9 for n in number],
    })  # fmt: skip


def test_from_quarters_to_a_forecast_of_the_next_ones(capsys: pytest.CaptureFixture[str]) -> None:
    make_quarters(80).write_csv("q.csv")
    words = ["train", "forecast", "--data", "q.csv", "--target", "y", "--horizon", "4", "--steps",
             "2", "--hidden", "4", "--threads", "1", "--out", "run"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "year,quarter, step 3 months" in said and "4 steps" in said
    assert main(["evaluate", "run"]) == 0
    capsys.readouterr()
    make_quarters(90).write_csv("later.csv")
    assert main(["evaluate", "run", "later.csv"]) == 0
    assert main(["predict", "run", "later.csv", "--out", "ahead.csv"]) == 0
    ahead = pl.read_csv("ahead.csv")
    assert ahead["year,quarter"].to_list() == ["2012-07-01", "2012-10-01", "2013-01-01",
                                               "2013-04-01"]  # fmt: skip
    capsys.readouterr()
    make_quarters(90).drop("quarter").write_csv("lacking.csv")
    assert main(["predict", "run", "lacking.csv"]) == 2
    assert "must have the column quarter of the time year,quarter" in capsys.readouterr().err


def test_what_would_be_read_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    make_quarters(40).write_csv("q.csv")
    assert main(["data", "q.csv"]) == 0
    said = capsys.readouterr().out
    assert "part of the time" in said and "year,quarter, step 3 months" in said
    assert "training to 1997-01-01, validation to 1998-07-01" in said
    assert "--target y" in said


def test_classes_in_the_order_of_a_date_and_an_hour() -> None:
    from throughtime.tasks.classify.find import find_labels
    from throughtime.tasks.classify.items import ClassifyRecipe

    rows = [(f"s{n}", "ab"[n % 2], f"2024-01-0{1 + h // 24}", h % 24, n * 31 % 17 + h * n % 7)
            for n in range(40) for h in (20, 21, 30)]  # fmt: skip
    pl.DataFrame(rows, ["id", "kind", "date", "hour", "x"], orient="row").write_csv("a.csv")
    facts = find_labels(ClassifyRecipe(data="a.csv", label="kind", series="id"))
    assert (facts.time, facts.columns, facts.step) == ("date,hour", ["x"], 3600.0)
