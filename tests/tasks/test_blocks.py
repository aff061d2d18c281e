"""A large file read in blocks is the file read at once; so are a model's answers over Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.main_job.small import small_dictionary
from throughtime.cli import main
from throughtime.cli.commands import predict
from throughtime.errors import DataError
from throughtime.tasks.classify.find import make_waves
from throughtime.tasks.tables import pieces, read
from throughtime.tasks.tables.read import read_blocks
from throughtime.tasks.tag import Tag
from throughtime.tasks.translate import Translate
from throughtime.tasks.translate.find import read_pair_blocks, read_pairs
from throughtime.tasks.translate.units import TranslateRecipe
from throughtime.train import run
from throughtime.train.result import load_trained

SMALL = ["--hidden", "4", "--steps", "4", "--validate-every", "4", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pieces, "_PIECE", 1000)
    monkeypatch.setattr(read, "_PIECE", 70)


def write(frame: pl.DataFrame, name: str) -> str:
    frame.write_parquet(name) if name.endswith("parquet") else frame.write_csv(name)
    return name


def odd() -> pl.DataFrame:
    """Whole numbers that have a point once, numbers that are a word once, and missing ones."""
    rows = range(300)
    return pl.DataFrame({
        "s": [f"s{n // 7}" for n in rows],
        "number": [str(n) if n < 290 else "0.5" for n in rows],
        "word": [f"{n}.0" if n < 290 else "x" for n in rows],
        "gaps": ["NA" if n < 150 else str(n) for n in rows],
        "plain": [n / 3 for n in rows],
    })  # fmt: skip


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("series", ["s", ""])
def test_blocks_are_the_file_and_cut_no_series(name: str, series: str) -> None:
    whole = read.read(write(odd(), name))
    blocks = list(read_blocks(name, series, 4))
    assert len(blocks) > 3
    assert pl.concat([one.frame for one in blocks]).equals(whole.frame)
    assert [one.first for one in blocks][:1] == [whole.first]
    row = 0
    for one in blocks:
        assert one.place(0) == whole.place(row)
        row += len(one.frame)
    if series:
        names = [set(one.frame["s"]) for one in blocks]
        assert sum(map(len, names)) == len(set.union(*names))
        assert all(len(part) % 4 == 0 for part in names[:-1])


def test_what_cannot_be_cut_is_one_sentence() -> None:
    with pytest.raises(DataError, match="rows of a series must follow each other .* s s0 do not"):
        list(read_blocks(write(pl.concat([odd(), odd()]), "t.csv"), "s", 4))
    Path("q.csv").write_text('a,b\n1,"x\ny"\n')
    with pytest.raises(DataError, match="read in blocks must have no quotes, and some of q.csv"):
        list(read_blocks("q.csv", "", 4))
    with pytest.raises(DataError, match="a file read in blocks must be CSV or Parquet, got 'a.j"):
        list(read_blocks("a.jsonl", "", 4))


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err


@pytest.fixture
def waves(capsys: pytest.CaptureFixture[str]) -> str:
    frame = make_waves().frame
    write(frame, "waves.csv")
    write(frame, "waves.parquet")
    words = ["--data", "waves.csv", "--label", "shape", "--series", "wave", "--out", "run"]
    assert main(["train", "classify", *SMALL, *words]) == 0
    capsys.readouterr()
    return "run"


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_blocks_of_texts_are_the_file(name: str) -> None:
    frame = pl.DataFrame({"source": [f"w{n} a" for n in range(700)], "target": ["x y"] * 700})
    if name.endswith("jsonl"):
        frame.write_ndjson(name)
    elif name.endswith("parquet"):
        frame.write_parquet(name)
    else:
        frame.write_csv(name, separator="\t" if name.endswith("tsv") else ",")
    whole = read_pairs(name, TranslateRecipe())
    blocks = list(read_pair_blocks(name, TranslateRecipe(), 100))
    assert [len(one.frame) for one in blocks] == [100] * 7
    assert pl.concat([one.frame for one in blocks]).equals(whole.frame)
    assert blocks[3].place(7) == whole.place(307) and blocks[3].unit == whole.unit
    with pytest.raises(DataError, match="must end in .csv"):
        next(read_pair_blocks("t.xls", TranslateRecipe(), 100))


def test_ray_that_is_not_there_and_what_it_cannot_take(
    waves: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("predict", waves, "waves.csv")
    said = refused(capsys, *asked, "--address", "a:1")
    assert "address is a Ray's, got 'a:1' with --on local" in said
    said = refused(capsys, *asked, "waves.csv", "--on", "ray")
    assert "--on ray takes one file, got 2" in said
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(capsys, *asked, "--on", "ray")
    assert "ray, which the extra cluster brings, is needed here and is not installed" in said


def test_runs_whose_series_hang_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pl.DataFrame({"y": [((7 * n) % 13) / 13 for n in range(120)]}).write_csv("y.csv")
    words = ["--data", "y.csv", "--target", "y", "--horizon", "3", "--out", "run"]
    assert main(["train", "forecast", *SMALL, *words]) == 0
    said = refused(capsys, "predict", "run", "y.csv", "--on", "ray")
    assert (
        "tables whose series are answered by themselves, as of classify and translate, and" in said
    )
    assert "run is one of forecast; leave it out" in said


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.timeout(400)
def test_answers_over_ray_are_those_of_this_process(
    waves: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data", reason="ray is not installed: answers over Ray are NOT tested")
    from throughtime.tasks.classify import Classify

    monkeypatch.setattr(Classify, "together", 32)
    for file, out in (("waves.csv", "csv"), ("waves.parquet", "parquet")):
        assert main(["predict", waves, file, "--out", f"here.{out}"]) == 0
        assert main(["predict", waves, file, "--on", "ray", "--out", f"there.{out}"]) == 0
        look = pl.read_csv if out == "csv" else pl.read_parquet
        here, there = look(f"here.{out}"), look(f"there.{out}")
        assert there.schema == here.schema and len(there) == 240
        assert there[:, :2].equals(here[:, :2])
        for name in here.columns[2:]:
            assert there[name].to_list() == pytest.approx(here[name].to_list(), rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.timeout(400)
@pytest.mark.parametrize("task", ["pronounce", "tag", "translate"])
def test_lines_and_texts_over_ray_are_those_of_this_process(
    task: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.data", reason="ray is not installed: answers over Ray are NOT tested")
    with small_dictionary():
        assert main(["train", task, *SMALL, "--out", "run"]) == 0
    monkeypatch.setattr(predict, "_AT_ONCE", 40)
    monkeypatch.setattr(Translate, "together", 30)
    lines = [f"sun moon {'star ' * (n % 3)}{n}" if task != "pronounce" else "sun" * (1 + n % 3)
             for n in range(100)]  # fmt: skip
    lines[50] = "1?" if task == "pronounce" else lines[50]
    Path("lines.txt").write_text("\n".join(lines) + "\n")
    bad = {"pronounce": "error: lines.txt, line 51: "}.get(task, "")
    said = []
    for on in ("local", "ray"):
        capsys.readouterr()
        assert main(["predict", "run", "lines.txt", "--on", on]) == (2 if bad else 0)
        said.append(capsys.readouterr())
        assert bad in said[-1].err
    assert said[0].out == said[1].out and said[0].out.count("\n") == 100 - bool(bad)
    if task == "translate":
        write(pl.DataFrame({"english": lines, "target": lines}), "t.csv")
        assert main(["predict", "run", "t.csv", "--on", "ray", "--out", "ray.csv"]) == 0
        made, model = load_trained(run.read(Path("run")))
        assert isinstance(made, Translate)
        here = [made.predict(model, block)[0] for block in made.blocks("t.csv")]
        assert [len(one) for one in here] == [30, 30, 30, 10]
        assert pl.read_csv("ray.csv").equals(pl.concat(here))


def test_answers_to_an_empty_file_are_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    items, model = [str(tmp_path / "empty.txt")], torch.nn.Identity()
    for ending in ("csv", "parquet", "jsonl"):
        out = tmp_path / f"answers.{ending}"
        assert predict._answer_lines(Tag(Tag.options(task="tag")), model, items, out)
        assert out.exists()
    assert (tmp_path / "answers.csv").read_text() == "given,answer\n"
