"""What is wrong with a file is one sentence that names file, row and column, and costs nothing."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import throughtime
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


def conllu(*tokens: str) -> str:
    """Lines of CoNLL-U, of `form label` each."""
    cells = [one.partition(" ")[::2] for one in tokens]
    lines = [f"{n}\t{form}\t_\t{label}" for n, (form, label) in enumerate(cells, start=1)]
    return "".join(line + "\t_" * 6 + "\n" for line in lines)


BAD: dict[str, tuple[str, str | bytes, list[str]]] = {
    "a missing column": (
        FORECAST, "day,yy\n2024-01-01,1\n", ["bad.csv", "got 'y'", "did you mean yy?"]),
    "an empty file": (FORECAST, "", ["bad.csv must hold rows", "empty (0 bytes)"]),
    "a header alone": (FORECAST, "day,y\n", ["bad.csv", "none after its column names"]),
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
    "a class for each sequence": (
        SERIES, "s,m,kind\n" + "".join(f"{n // 4},{n % 9},{n // 4}\n" for n in range(48)),
        ["at least 3 sequences, one for each part, and 0 of column kind of bad.csv has 1"]),
    "sequences that are all equal": (
        SERIES, "s,m,kind\n" + "".join(f"{n // 4},1,{n // 4 % 2}\n" for n in range(96)),
        ["of column kind of bad.csv are held out, since equal ones"]),
    "no such file": ("forecast --data gone.csv --target y", daily(), ["gone.csv"]),
    "an empty text": ("language --data bad.txt", "\n", ["bad.txt must hold text"]),
    "a text of another encoding": (
        "language --data bad.txt", "ein Käse\n".encode("latin1"),
        ["bad.txt must be UTF-8", "line 1"]),
    "CoNLL-U that is ragged": (
        "tag --data bad.conllu", conllu("the DET", "old ADJ") + "3\tx\n",
        ["bad.conllu", "line 3 has 2"]),
    "CoNLL-U of another encoding": (
        "tag --data bad.conllu", conllu("the DET", "Käse NOUN").encode("latin1"),
        ["bad.conllu must be UTF-8", "line 2"]),
    "CoNLL-U with an empty cell": (
        "tag --data bad.conllu", conllu("the DET", " NOUN", "old ADJ"),
        ["column form", "line 2 of bad.conllu"]),
    "CoNLL-U without tokens": (
        "tag --data bad.conllu", "# sent_id = 1\n\n\n", ["bad.conllu must hold tokens"]),
    "CoNLL-U with one label": (
        "tag --data bad.conllu", conllu("the _", "old _"),
        ["column upos of bad.conllu", "holds _ alone"]),
    "an empty sentence": (
        "tag --data bad.jsonl", '{"token": ["a"], "label": ["X"]}\n{"token": [], "label": []}\n',
        ["line 2 of bad.jsonl", "at least 1"]),
    "pairs of another encoding": (
        "translate --data bad.tsv", "cheese\tKäse\n".encode("latin1"), ["bad.tsv must be UTF-8"]),
    "pairs that are ragged": (
        "translate --data bad.tsv", "a\tb\nc\n", ["bad.tsv must have 2 cells", "line 2 has 1"]),
    "a pair without a target": (
        "translate --data bad.tsv", "a\tb\nc\t\n", ["line 2 of bad.tsv"]),
    "a pair of spaces": (
        "translate --units words --data bad.jsonl",
        "".join(f'{{"source": "w{n}", "target": "v{n}"}}\n' for n in range(30))
        + '{"source": " ", "target": "x"}\n', ["column source", "line 31 of bad.jsonl"]),
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


SMALL = "--steps 2 --validate-every 1 --hidden 4 --threads 1 --out run"


@pytest.mark.parametrize("task", ["tag", "translate", "language"])
def test_what_training_had_not_is_said_and_what_is_no_text_is_refused(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", task, *SMALL.split()]) == 0
    capsys.readouterr()
    Path("lines.txt").write_bytes(
        "a cat\n\nein Käse\nthe ☃\n".encode().replace(b"\xc3\xa4", b"\xe4")
    )
    assert main(["predict", "run", "lines.txt"]) == 2
    said = capsys.readouterr()
    assert [line.partition("\t")[0] for line in said.out.splitlines()] == ["a cat", "the ☃"]
    assert f"lines.txt, line 3: what {task} is asked must be UTF-8, and 'ein K" in said.err
    note = next(line for line in said.err.splitlines() if "training had no" in line)
    assert "☃" in note
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        throughtime.load("run").predict(["the ☃"])
    assert any("training had no" in str(w.message) and "☃" in str(w.message) for w in caught)
    if task == "language":
        assert main(["generate", "run", "--prompt", "☃", "--length", "3"]) == 0
        assert "note: training had no characters ☃" in capsys.readouterr().err
    truth = {
        "tag": ("new.tsv", "sentence\ttoken\tupos\ns\tthe\tDET\ns\t☃\tNOUN\n"),
        "translate": ("new.tsv", "english\tspanish\nthe ☃\tx\n"),
        "language": ("new.txt", "the ☃ is\nhere\n"),
    }
    file, text = truth[task]
    Path(file).write_text(text, encoding="utf-8")
    assert main(["evaluate", "run", file]) == 0
    said = capsys.readouterr()
    note = next(line for line in said.err.splitlines() if "training had no" in line)
    assert note.startswith(f"note: {file}: training had no character") and "☃" in note
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        throughtime.load("run").evaluate(file)
    assert any("training had no character" in str(w.message) for w in caught)
