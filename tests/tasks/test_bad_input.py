"""What is wrong with a file is one sentence that names file, row and column, and costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from throughtime.cli import main

FORECAST = "forecast --data bad.csv --target y --horizon 2"
ROWS = "classify --data bad.csv --label kind"
SERIES = "classify --data bad.csv --label kind --series s"


def daily(count: int = 40, **change: str) -> str:
    """A file of days and numbers, some cells changed: `y7="x"` for row 7."""
    lines = ["day,y,x"]
    for n in range(count):
        cells = {"day": f"2024-{1 + n // 28:02}-{1 + n % 28:02}", "y": f"{n % 7}.{n % 3}",
                 "x": f"{n * 37 % 11}"}  # fmt: skip
        cells |= {name: change[f"{name}{n}"] for name in cells if f"{name}{n}" in change}
        lines.append(",".join(cells.values()))
    return "\n".join(lines) + "\n"


def kinds(count: int = 24, other: str = "") -> str:
    lines = [f"{n * 7 % 5},{n * 3 % 8},{'ab'[n % 2]}" for n in range(count)]
    return "m1,m2,kind\n" + "\n".join(lines) + f"\n{other}"


BAD: dict[str, tuple[str, str | bytes, list[str]]] = {
    "a missing column": (
        FORECAST, "day,yy\n2024-01-01,1\n", ["bad.csv", "got 'y'", "did you mean yy?"]),
    "an empty file": (FORECAST, "", ["bad.csv must hold rows", "empty (0 bytes)"]),
    "a header alone": (FORECAST, "day,y\n", ["bad.csv", "none behind its column names"]),
    "one row": (FORECAST, "day,y\n2024-01-01,1\n", ["column y of bad.csv", "1 in every row"]),
    "two rows": (FORECAST, "day,y\n2024-01-01,1\n2024-01-02,2\n", ["bad.csv", "in 2 rows"]),
    "all missing": (FORECAST, "day,y\n" + "2024-01-01,\n" * 3, ["bad.csv"]),
    "a constant target": (
        FORECAST, "day,y\n" + "".join(f"2024-01-{n:02},5\n" for n in range(1, 29)),
        ["column y of bad.csv must vary", "from line 2 on"]),
    "a time twice": (FORECAST, daily(day9="2024-01-09"), ["column day", "line 10 of bad.csv"]),
    "a date that does not parse": (
        f"{FORECAST} --time day", daily(day5="2024-13-45"), ["column day", "line 7 of bad.csv"]),
    "a date that is missing": (
        f"{FORECAST} --time day", daily(day5=""), ["column day", "line 7 of bad.csv has none"]),
    "text among numbers": (
        FORECAST, daily(y11="many"), ["column y", "line 13 of bad.csv has 'many'"]),
    "an infinite number": (FORECAST, daily(y11="inf"), ["column y", "line 13 of bad.csv has inf"]),
    "a series shorter than the horizon": (
        f"{FORECAST} --series s",
        "day,s,y\n" + "".join(f"2024-01-{n:02},a,{n % 5}\n" for n in range(1, 29))
        + "2024-01-01,b,1\n2024-01-02,b,2\n",
        ["series b of bad.csv", "4 horizons, 8 steps", "in 2 rows"]),
    "another encoding": (
        FORECAST, daily().encode() + "2024-03-01,1,Käse\n".encode("latin1"),
        ["bad.csv must be UTF-8", "line 42"]),
    "a ragged row": (FORECAST, daily() + "2024-03-01,1\n", ["bad.csv", "line 42 has 2"]),
    "a name twice": (FORECAST, "y,y\n1,2\n", ["bad.csv", "got 'y' twice"]),
    "an odd ending": ("forecast --data bad.xls --target y", daily(), ["got 'bad.xls'"]),
    "one class": (
        ROWS, "m1,kind\n" + "".join(f"{n},a\n" for n in range(9)),
        ["column kind of bad.csv", "a alone, from line 2 on"]),
    "a class with one row": (ROWS, kinds(other="1,2,odd\n"), ["odd of column kind of bad.csv"]),
    "a label that is missing": (
        ROWS, kinds(other="1,2,\n"), ["column kind", "line 26 of bad.csv has none"]),
    "no numbers": (ROWS, "m,kind\nx,a\ny,b\n", ["bad.csv must have a column of numbers"]),
    "a label that changes": (
        SERIES, "s,m,kind\n1,1,a\n1,2,b\n", ["column kind", "line 2 of bad.csv", "line 3"]),
    "no such file": ("forecast --data gone.csv --target y", daily(), ["gone.csv"]),
    "an empty text": ("language --data bad.txt", "\n", ["bad.txt must hold text"]),
    "no json": ("forecast --data bad.jsonl --target y", '{"y": 1}\n[2]\n', ["bad.jsonl", "line 2"]),
    "no parquet": ("forecast --data bad.parquet --target y", "y\n1\n", ["bad.parquet"]),
    "a .ts without classes": (
        "classify --data bad.ts", "@classLabel false\n@data\n1,2:3\n", ["bad.ts", "line 1"]),
    "a .ts that is ragged": (
        "classify --data bad.ts", "@classLabel true a\n@data\n1,2:a\n1:2:a\n",
        ["bad.ts", "line 4"]),
    "a .ts with words": (
        "classify --data bad.ts", "@classLabel true a\n@data\n1,x:a\n",
        ["dimension 1 in line 3 of bad.ts", "'x'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence_and_makes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, content, said = BAD[name]
    file = next(word for word in words.split() if word.startswith(("bad", "gone")))
    if file.startswith("bad"):
        Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert [part for part in said if part not in error] == [], error
    assert not Path("runs").exists()
