"""Classes: what stands on which side, what the net reads, a run from file to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from throughtime.cli import main
from throughtime.errors import DataError
from throughtime.tasks.classify import Classify, measure
from throughtime.tasks.classify.find import find_labels, make_waves
from throughtime.tasks.classify.items import ClassifyRecipe, encode_items, list_sequences
from throughtime.tasks.tables.read import read
from throughtime.train.run import resolve


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(**options: object) -> Classify:
    task = Classify(resolve(Classify, {"hidden": 4, "threads": 1, **options}))
    assert isinstance(task, Classify)
    return task


def test_sides_hang_on_the_content_alone_and_have_every_class() -> None:
    frame = make_waves().frame
    frame.write_csv("data.csv")
    steps = frame.with_row_index("n").sort("wave", "n", descending=[True, False]).drop("n")
    steps.with_columns(wave="y" + pl.col("wave")).write_csv("other.csv")
    sides = []
    for name, cut in (("data.csv", 0), ("other.csv", 1)):
        facts = find_labels(ClassifyRecipe(data=name, label="shape", series="wave"))
        names = pl.read_csv(name)["wave"].unique(maintain_order=True).to_list()
        sides.append({s: {names[n][cut:] for n in p} for s, p in facts.splits.items()})
        assert facts.weights == pytest.approx([1, 1, 1])
        assert facts.classes == ["chirp", "saw", "sine"]
    assert sides[0] == sides[1]
    assert [len(sides[0][s]) for s in ("train", "validation", "test")] == [168, 36, 36]


def test_equal_sequences_stay_on_one_side_and_rows_may_be_sequences() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 5)).round(3)
    rows[10:20] = rows[10]
    frame = pl.DataFrame(rows).with_columns(kind=pl.Series(["a"] * 20 + ["b"] * 10))
    frame.write_csv("data.csv")
    facts = made(data="data.csv", label="kind").facts
    (side,) = [s for s, part in facts.splits.items() if 12 in part]
    assert set(range(10, 20)) <= set(facts.splits[side])
    train = rows[facts.splits["train"]]
    assert facts.means[0] == pytest.approx(train.mean())
    assert facts.deviations[0] == pytest.approx(train.std())


def test_a_missing_value_is_the_last_one_seen_and_its_mask_says_so() -> None:
    values = {"s": ["p", "p", "q"], "k": ["u", "u", "v"], "x": [1.0, None, 3.0]}
    frame = pl.concat([pl.DataFrame(values)] * 9)
    frame = frame.with_columns(s=pl.col("s") + (pl.int_range(pl.len()) // 3).cast(str))
    frame.with_columns(x=pl.col("x") + 1.1 * pl.int_range(pl.len())).write_csv("data.csv")
    facts = made(data="data.csv", label="k", series="s").facts
    items = encode_items(list_sequences(read("data.csv"), facts, labelled=True), facts)
    first = items.steps[0]
    assert first[:, 1].tolist() == [1, 0] and first[1, 0] == first[0, 0] != 0
    assert first[:, 2:].tolist() == [[0, 0], [0, 0]]  # one step each since a value and a row
    inputs, lengths, truth = items.batch(torch.tensor([0, 1]))
    assert inputs.shape == (2, 2, 4) and lengths.tolist() == [2, 1] and truth.tolist() == [0, 1]


def test_padding_changes_no_answer() -> None:
    frame = make_waves().frame
    frame.write_csv("data.csv")
    task = made(data="data.csv", label="shape", series="wave")
    model = task.model().eval()
    items = encode_items(list_sequences(read("data.csv"), task.facts, labelled=True), task.facts)
    rows = torch.arange(9)
    together = model(*items.batch(rows)[:2])
    alone = torch.cat([model(*items.batch(row)[:2]) for row in rows.split(1)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-6)


def test_figures_are_those_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    figures = measure(logits, torch.tensor([0, 0, 1, 1]))
    nats = (2 * np.log1p(np.exp(-2)) + np.log(2) + np.log1p(np.exp(-1))) / 4
    assert figures == {"error": 0.25, "balanced_error": 0.25, "nats": pytest.approx(nats)}


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"label": "shap"}, "data.csv, which has wave, shape, a, b, got 'shap'; did you mean"),
        ({}, {"label": ""}, "classes need --label, a column of data.csv"),
        ({"shape": pl.lit("x")}, {}, "two classes or more, and it holds x alone, from line 2 on"),
        ({"shape": pl.lit("z") + pl.col("a").cast(str)}, {}, "the same within series w000, and it"),
        ({"shape": pl.lit(None)}, {}, "must have a value in every row, and line 2 of data.csv has"),
        ({"a": pl.lit("m"), "b": pl.lit("n")}, {}, "must have a column of numbers beside shape"),
        (
            {"shape": pl.when(wave="w001").then(pl.lit("odd")).otherwise("shape")},
            {},
            "at least 3 sequences, one for each part, and odd of column shape of data.csv has 1",
        ),
    ],
)
def test_a_wrong_file_is_one_sentence(
    change: dict[str, pl.Expr], options: dict[str, str], said: str
) -> None:
    make_waves().frame.with_columns(**change).write_csv("data.csv")
    given = {"data": "data.csv", "label": "shape", "series": "wave", **options}
    with pytest.raises(DataError) as caught:
        made(**given)
    assert said in str(caught.value)


def test_a_label_that_changes_is_named_by_its_own_file() -> None:
    for name, shape in (("one", "saw"), ("two", "sine")):
        pl.DataFrame({"wave": ["w"] * 3, "shape": [shape] * 3, "a": [1, 2, 3]}).write_csv(
            f"{name}.csv"
        )
    with pytest.raises(DataError, match="saw in line 2 of one.csv and sine in line 2 of two.csv;"):
        made(data="one.csv,two.csv", label="shape", series="wave")


def test_rows_of_json_are_numbered_by_their_lines() -> None:
    Path("data.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [read("data.jsonl").place(row) for row in (0, 1)] == [
        "line 1 of data.jsonl", "line 3 of data.jsonl",
    ]  # fmt: skip


def test_a_class_of_equal_sequences_cannot_be_trained_on() -> None:
    generator = np.random.default_rng(0)
    rows = [("odd", f"o{n}", step / 10) for n in range(5) for step in range(4)]
    rows += [(name, f"{name}{n}", float(generator.standard_normal()))
             for name in "ab" for n in range(20) for _ in range(4)]  # fmt: skip
    pl.DataFrame(rows, schema=["shape", "wave", "a"], orient="row").write_csv("data.csv")
    with pytest.raises(DataError) as caught:
        made(data="data.csv", label="shape", series="wave")
    assert str(caught.value) == (
        "a class must have sequences to train on, and the 5 of odd of column shape of data.csv are "
        "held out, since equal ones and those of a group stay together; add others, or take it out"
    )


def test_from_a_file_to_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    make_waves().frame.write_csv("data.csv")
    flags = "--label shape --series wave --hidden 8 --steps 20 --validate-every 10"
    assert main(["train", "classify", "--data", "data.csv", *flags.split()]) == 0
    shown = capsys.readouterr().out
    for words in ("240, by wave", "20 to 40", "majority", "linear on means", "How far back"):
        assert words in shown
    results = json.loads(Path("runs/classify-1/results.json").read_text())
    assert list(results["metrics"])[0] == "error"
    assert results["baselines"]["majority"]["error"] == pytest.approx(2 / 3)
    make_waves().frame.drop("shape").head(70).write_csv("new.csv")
    assert main(["predict", "runs/classify-1", "new.csv", "--out", "out.parquet"]) == 0
    out = pl.read_parquet("out.parquet")
    assert out.columns == ["wave", "shape", "p_chirp", "p_saw", "p_sine"]
    assert np.allclose(out.select(pl.sum_horizontal("^p_.*$")).to_series(), 1)
    Path("a.csv").mkdir()
    refused = {"a.csv": "must be a file, got the folder a.csv", "b/a.csv": "make b first"}
    for file, words in refused.items():
        assert main(["predict", "runs/classify-1", "new.csv", "--out", file]) == 2
        assert words in capsys.readouterr().err


def test_rows_that_are_sequences_are_predicted_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(n % 7 + n % 2 * 5.5, n * 13 % 11 / 2, n * 3 % 5, "ab"[n % 2]) for n in range(60)]
    frame = pl.DataFrame(rows, schema=["x", "y", "z", "kind"], orient="row")
    frame.head(50).write_csv("rows.csv")
    frame.tail(20).write_csv("more.csv")
    frame.drop("kind").tail(3).write_csv("bare.csv")
    words = "--label kind --steps 1 --hidden 4 --threads 1 --out run".split()
    assert main(["train", "classify", "--data", "rows.csv", *words]) == 0
    assert main(["evaluate", "run", "more.csv"]) == 0
    assert main(["predict", "run", "bare.csv", "--out", "said.csv"]) == 0
    said = pl.read_csv("said.csv")
    assert said.columns == ["row", "kind", "p_a", "p_b"] and said["row"].to_list() == [2, 3, 4]
    capsys.readouterr()
    frame.drop("y").write_csv("lacking.csv")
    assert main(["predict", "run", "lacking.csv"]) == 2
    assert "lacking.csv must have the column y" in capsys.readouterr().err
