"""What stands above the rows of a text: remarks, names, or a line that is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from throughtime.cli import main
from throughtime.errors import DataError
from throughtime.tasks.tables import pieces
from throughtime.tasks.tables.read import read, read_blocks


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("piece", [1 << 24, 30])
@pytest.mark.parametrize(
    ("head", "lines", "names", "said"),
    [
        ("t,y\n", 1, ["t", "y"], "with a header"),
        ("", 0, ["column_1", "column_2"], "without a header"),
        ("# from a station, 2 m high\n#\n\nt,y\n", 4, ["t", "y"], "3 lines of remarks, with a"),
        ("# of 2024; a, b, c\n", 1, ["column_1", "column_2"], "1 lines of remarks, without a"),
        ("# made by hand\n# t, y\n", 2, ["t", "y"], "remarks, the last with the names"),
        ("#t,y\n", 1, ["t", "y"], "the last with the names of columns"),
        ("0,1\n", 0, ["column_1", "column_2"], "without a header"),
        ("t,2020\n", 1, ["t", "2020"], "with a header"),
    ],
)
def test_remarks_and_names(
    head: str, lines: int, names: list[str], said: str, piece: int, quote: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pieces, "_PIECE", piece)
    rows = "".join(f"{n},{quote}{n}.5{quote}\n" for n in range(10, 20))
    Path("a.csv").write_text(head + rows)
    table = read("a.csv")
    first = 1 if head == "0,1\n" else 0
    assert table.frame.columns == names and said in table.form
    assert table.numbers(names[1])[first:].tolist() == [n + 0.5 for n in range(10, 20)]
    assert table.place(0) == f"line {lines + 1} of a.csv"
    if not quote:
        (block,) = read_blocks("a.csv", "", 1000)
        assert block.frame.equals(table.frame) and block.first == table.first


def test_a_line_that_is_neither_names_nor_a_row_is_left_out_and_said() -> None:
    Path("iris.csv").write_text(
        "150,4,one,two,three\n5.1,3.5,1.4,0.2,0\n4.9,,1.4,0.2,1\n6,3,5,2,2\n"
    )
    table = read("iris.csv")
    assert table.frame.columns == [f"column_{n}" for n in range(1, 6)]
    assert "line 1 is left out, which is neither names nor a row" in table.form
    assert len(table.frame) == 3 and table.place(0) == "line 2 of iris.csv"
    assert table.frame["column_5"].to_list() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("id,1990,1991,1992\n7,1,2,3\n8,4,5,6\n", ["id", "1990", "1991", "1992"]),
        (",0,1,2\n0,1.5,2,3\n1,4,5,6\n", ["column_1", "0", "1", "2"]),
        ("0,1,2\n1.5,2,3\n4,5,6\n", ["0", "1", "2"]),
        ("a,1\nb,2\n", ["column_1", "column_2"]),
        ("oslo,12,3\nrome,20,4\n", ["column_1", "column_2", "column_3"]),
        ("2024-01-01,5\n2024-01-02,6\n", ["column_1", "column_2"]),
        ("-,5\n3,4\n", ["column_1", "column_2"]),
        ("NA,5\n3,4\n", ["column_1", "column_2"]),
    ],
)
def test_numbers_that_count_are_names_and_values_are_none(text: str, names: list[str]) -> None:
    Path("a.csv").write_text(text)
    assert read("a.csv").frame.columns == names


def test_what_is_wrong_below_remarks_is_named_by_its_line() -> None:
    for quote in ("", '"'):
        Path("a.csv").write_text(f"# a\n# b\nt,y\n1,{quote}2{quote}\n1,2,3\n")
        with pytest.raises(DataError, match="must have 2 cells, as its first has, and line 5 has"):
            read("a.csv")


@pytest.mark.parametrize("piece", [1 << 24, 20])
def test_points_and_commas_in_one_column_are_no_numbers(
    piece: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", piece)
    rows = [f"{n};{n}.5\n" for n in range(30)] + [f"{n};{n},5\n" for n in range(30, 60)]
    Path("a.csv").write_text("t;y\n" + "".join(rows))
    with pytest.raises(DataError, match="column y must hold numbers, and line 32 of a.csv has "):
        read("a.csv").numbers("y")
    assert main(["train", "forecast", "--data", "a.csv", "--target", "y", "--horizon", "2"]) == 2
    assert "line 32 of a.csv has '30,5'" in capsys.readouterr().err
    Path("a.csv").write_text("t;y\n" + "".join(rows).replace(".5", ",5"))
    assert np.array_equal(read("a.csv").numbers("y"), np.arange(60) + 0.5)
