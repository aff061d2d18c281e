"""Tags: files of all forms give the same sentences, sides never share one, figures by hand."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from statistics import mean

import polars as pl
import pytest
import torch
from torch.nn.functional import one_hot

import throughtime
from tests.house.source import ROOT
from throughtime.cli import main
from throughtime.errors import DataError
from throughtime.tasks.tables.task import join_keys, split_by_key
from throughtime.tasks.tag import Tag, encode
from throughtime.tasks.tag.find import Counts, make_tagged, measure
from throughtime.tasks.task import IGNORED
from throughtime.train.run import resolve


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(**options: object) -> Tag:
    task = Tag(resolve(Tag, {"hidden": 4, "threads": 1, **options}))
    assert isinstance(task, Tag)
    return task


SENTENCES = [
    [("null", "X"), ("NA", "N"), ('"', "P"), (f"w{n}", "N"), (".", "P")] for n in range(30)
]


def write_as(form: str) -> dict[str, str]:
    """SENTENCES in a file of a form, and the options that read it."""
    blocks = ["\n".join(f"{t}\t{m}" for t, m in one) for one in SENTENCES]
    rows = [(str(n), t, m) for n, one in enumerate(SENTENCES) for t, m in one]
    frame = pl.DataFrame(rows, schema=["sent_id", "token", "tag"], orient="row")
    file = Path(f"data.{form.partition(' ')[0]}")
    if form == "conllu":
        lines = [
            [f"{k}\t{t}\t_\t{m}" + "\t_" * 6 for k, (t, m) in enumerate(one, start=1)]
            for one in SENTENCES
        ]
        odd = "1-2\tdel\t_\t_" + "\t_" * 6
        file.write_text("\n\n".join(f"# a = b\n{odd}\n" + "\n".join(one) for one in lines) + "\n\n")
    elif form == "conll":
        file.write_text("-DOCSTART- X\n\n" + "\n\n".join(b.replace("\t", " O ") for b in blocks))
    elif form == "tsv":
        file.write_text("\n\n".join(blocks) + "\n")
    elif form == "csv":
        frame.write_csv(file)
    elif form == "csv first":  # the sentence's number at its first token alone
        first = pl.col("sent_id").is_first_distinct()
        frame.with_columns(pl.when(first).then("sent_id")).write_csv(file, separator=";")
    elif form == "csv bare":  # two columns without names
        frame.drop("sent_id").write_csv(file, include_header=False)
    elif form == "jsonl":
        frame.group_by("sent_id", maintain_order=True).all().drop("sent_id").write_ndjson(file)
    else:
        frame.write_parquet(file)
    return {"data": str(file)}


FORMS = ["conllu", "conll", "tsv", "csv", "csv first", "csv bare", "jsonl", "parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_sentences_and_sides(form: str) -> None:
    task = made(**write_as(form))
    told = {}
    for side, found in task._sentences.items():
        pairs = zip(found.tokens, found.labels, strict=True)
        told[side] = [[*zip(*one, strict=True)] for one in pairs]
    sides = split_by_key(["\0".join(t for t, _ in one) for one in SENTENCES])
    assert told == {side: [SENTENCES[n] for n in numbers] for side, numbers in sides.items()}
    assert [len(sides[s]) for s in ("train", "validation", "test")] == [24, 3, 3]


def test_equal_sentences_stand_on_one_side_and_nothing_hangs_on_the_order() -> None:
    keys = [f"k{n % 40}" for n in range(100)]
    sides = split_by_key(keys)
    on = {side: {keys[n] for n in numbers} for side, numbers in sides.items()}
    assert not on["train"] & on["test"] and not on["train"] & on["validation"]
    turned = split_by_key(keys[::-1])
    assert {s: {keys[99 - n] for n in numbers} for s, numbers in turned.items()} == on
    assert split_by_key(["big", *"abcdefgh"], [90, *[1] * 8])["train"].count(0) == 1


def test_what_hangs_together_has_one_key() -> None:
    pairs = [("a", "1"), ("b", "2"), ("c", "2"), ("a", "3"), ("d", "3"), ("2", "a")]
    assert join_keys(pairs) == ["a", "b", "b", "a", "a", "2"]
    assert join_keys(pairs[::-1])[::-1] == join_keys(pairs)


def test_vocabularies_are_of_training_alone_and_labels_are_all_there() -> None:
    rows = [(f"s{n}", f"w{n}", "AB"[n % 2]) for n in range(40)]
    rows += [(f"s{n}", "end", f"R{n}" if n == 17 else "E") for n in range(40)]
    pl.DataFrame(rows, schema=["sent", "word", "pos"], orient="row").write_csv("data.csv")
    task = made(data="data.csv")
    train = task._sentences["train"]
    assert {*task.facts.words} == {token for one in train.tokens for token in one}
    held_out = task._sentences["test"].tokens + task._sentences["validation"].tokens
    assert len(held_out) in (7, 8) and all(one[0] not in task.facts.words for one in held_out)
    assert "R17" in {mark for one in train.labels for mark in one}


def test_groups_stay_whole_and_training_leaves_out_what_is_held_out() -> None:
    rows = [
        (f"b{book}", f"b{book}s{n}", token, tag)
        for book in range(20) for n in range(3)
        for token, tag in ([("same", "A"), ("words", "B")] if n == 0 else [(f"{book}{n}", "B")])
    ]  # fmt: skip
    schema = ["book", "sentence", "token", "label"]
    pl.DataFrame(rows, schema=schema, orient="row").write_csv("data.csv")
    with pytest.raises(DataError, match="a label must stand in the training part, and A of column"):
        made(data="data.csv", group="book")
    rows += [("b20", "x", "other", "A")] * 3
    pl.DataFrame(rows, schema=schema, orient="row").write_csv("data.csv")
    task = made(data="data.csv", group="book")
    groups = {side: {*one.groups} for side, one in task._sentences.items()}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    assert ["same", "words"] not in task._sentences["train"].tokens
    assert any(name == "left out" for name, _ in task.describe_data())


def test_padding_and_the_batch_around_change_no_answer() -> None:
    task = made()
    model, items = task.model().eval(), task._items["test"]
    together = model(items.batch(range(9))[0])
    for n in range(9):
        alone = model(items.batch([n])[0])[:, 0]
        assert torch.allclose(together[: len(alone), n], alone, rtol=0, atol=1e-6)


def test_the_words_around_reach_a_label_and_padding_is_not_learned_from() -> None:
    task = made()
    model = task.model().eval()
    tokens, truth = task._items["train"].batch([0, 1, 2, 3])
    assert bool(((truth == IGNORED) == (tokens[..., 0] == 0)).all())
    one = encode([["a", "b", "c"], ["x", "b", "c"]], [[""] * 3] * 2, task.facts)
    logits = model(one.batch([0, 1])[0])
    assert not torch.equal(logits[1, 0], logits[1, 1])


def test_figures_and_baselines_are_those_by_hand() -> None:
    truth, said = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    unseen = torch.tensor([True, True, False, False])
    figures = measure(one_hot(said, 3).float(), truth, unseen)
    e = torch.tensor(1.0).exp()
    nats = float((e + 2).log() - 0.5)
    # F1: label 0 2*1/(1+2), label 1 2*1/(3+1), label 2 0
    assert figures == pytest.approx(
        {"accuracy": 0.5, "macro_f1": (2 / 3 + 1 / 2) / 3, "unseen_accuracy": 0.5, "nats": nats},
        abs=1e-6,
    )
    counts = Counts([["run", "walked", "run", "talked", "run"]], [[0, 1, 0, 1, 1]], 2)
    words = ("run", "Run", "baked", "sun")
    assert [int(counts.frequent(word).argmax()) for word in words] == [0, 0, 1, 1]
    assert [int(counts.by_suffix(word).argmax()) for word in words] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a b\nc\n\nd e\n", {}, "every line of data.conll must have 2 cells, as line 1 has, and l"),
        ("a X\n\nb X\n", {}, "two labels or more, and it holds X alone, from line 1 of data.conll"),
        ("a X\nb Y\n", {}, "must hold at least 10 different sentences, some for each part, and"),
        ("# a = b\n", {}, "data.conll must hold tokens, and none of its lines is one"),
        ("", {}, "data.conll must hold tokens, and none of its lines is one"),
        ("a X\n\nb Y\n", {"label": "upos"}, "--label must name a column of data.conll, which has"),
        ("a X\n\nb Y\n", {"label": "colum_2"}, "got 'colum_2'; did you mean column_2?"),
        ("caf\xe9 X\n\nb Y\n", {}, "data.conll must be UTF-8, and line 1 is not; convert it"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, options: dict[str, str], said: str) -> None:
    Path("data.conll").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError) as caught:
        made(data="data.conll", **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("d.csv", "token,label\na,X\n,Y\n", "column token must have a value in every row, and lin"),
        ("d.csv", "token,label\na,X\nb\n", "every line of d.csv must have 2 cells, as line 1 has,"),
        ("d.csv", "one,two,three\na,X,b\n", "tags need --token, a column of d.csv, which has"),
        ("d.csv", "token,label\n", "d.csv must hold rows, and it has none after its column name"),
        ("d.xlsx", "token,label\n", "a file of data must end in .conllu, .conll, .iob, .bio, .csv"),
        ("d.jsonl", '{"token": ["a"], "label": ["X", "Y"]}\n', "lists of one length, at least 1"),
        (
            "d.jsonl",
            '{"token": "a"}\n{"token": [1]}\n',
            "must hold lists in every line or in none",
        ),
        ("d.jsonl", "[1]\n", "every line of d.jsonl must be a JSON object, and line 1 is '[1]'"),
        ("d.conllu", "1\ta\n", "must have 10 cells, as CoNLL-U has, and line 1 has 2"),
    ],
)
def test_a_wrong_table_is_one_sentence(name: str, text: str, said: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(DataError) as caught:
        made(data=name)
    assert said in str(caught.value)


@pytest.mark.parametrize("form", ["conllu", "csv"])
def test_data_shows_what_would_be_read(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_as(form)["data"]
    assert main(["data", file, *(["--token", "token"] if form == "csv" else [])]) == 0
    shown = capsys.readouterr().out
    assert "tag:" in shown and "30 of 5 to 5 tokens" in shown
    assert "train 24, validation 3, test 3" in shown


def test_the_page_has_the_figures_that_were_measured() -> None:
    kept = json.loads((ROOT / "benchmarks" / "tasks" / "greek.json").read_text())
    every, runs = kept["accuracy"]["all"], kept["runs"]
    assert len(every) == len(runs) == 3
    figures = [kept["accuracy"]["mean"], min(every), max(every)]
    figures += [one["accuracy"] for one in runs[0]["baselines"].values()]
    for name in ("accuracy", "shuffled_labels"):
        rows = zip(*(run["probe"] for run in runs), strict=True)
        figures += [mean(one[name] for one in row) for row in rows if row[0]["of"] == "label"]
    said = [f"{100 * one:.1f}" for one in figures]
    page = (
        (ROOT / "docs" / "tasks.md").read_text().partition("On the Greek")[2].partition("\n\n")[0]
    )
    words = re.findall(r"\d+\.\d", page)
    assert words == said
    assert kept["accuracy"]["mean"] >= kept["accuracy"]["must"] == 0.94


def test_a_changed_file_is_told() -> None:
    task = made(**write_as("csv"))
    with Path("data.csv").open("a") as file:
        file.write("9,new,N\n")
    with pytest.raises(DataError, match="data.csv must be as it was when the run began"):
        task.epoch(0)


def test_from_a_file_to_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    make_tagged().frame.head(3000).write_csv("data.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = "--hidden 8 --steps 20 --validate-every 10 --threads 1"
        assert main(["train", "tag", "--data", "data.csv", *flags.split()]) == 0
    shown = capsys.readouterr().out
    words = ("tokens token, labels upos", "most frequent tag", "and by suffix", "shuffled_labels")
    for word in (*words, "does not beat the best baseline: accuracy 0.", "How far back"):
        assert word in shown
    results = json.loads(Path("runs/tag-1/results.json").read_text())
    assert list(results["metrics"])[:2] == ["accuracy", "macro_f1"]
    assert all({*one} == {*results["metrics"]} for one in results["baselines"].values())
    places = [(one["of"], one["place"]) for one in results["probe"]]
    of = ("label", "word's class")
    assert places == [(o, p) for o in of for p in ("input", "layer 0", "layer 1")]
    assert main(["predict", "runs/tag-1", "the garden walk. old dogs"]) == 0
    item, answer = capsys.readouterr().out.strip().split("\t")
    assert item == "the garden walk. old dogs"
    assert [one.partition("/")[0] for one in answer.split()] == "the garden walk . old dogs".split()
    assert main(["predict", "runs/tag-1", "a ☃ walks", "--out", "said.csv"]) == 0
    assert "note: 2 of 3 words are none that training had\nnote: training had no character ☃" in (
        capsys.readouterr().err
    )
    assert pl.read_csv("said.csv")["given"].to_list() == ["a ☃ walks"]
    make_tagged().frame.drop("upos").head(70).write_csv("new.csv")
    assert main(["predict", "runs/tag-1", "new.csv", "--out", "out.parquet"]) == 0
    out = pl.read_parquet("out.parquet")
    assert out.columns == ["sentence", "token", "upos", "probability"]
    assert out["token"].to_list() == make_tagged().frame["token"].head(70).to_list()
    make_tagged().frame.tail(900).write_csv("later.csv")
    assert main(["evaluate", "runs/tag-1", "later.csv"]) == 0
    assert "later.csv: 8" in capsys.readouterr().out
    run = throughtime.load("runs/tag-1")
    assert run.predict(["the garden"]) == [run.predict("the garden")[0]]
    with pytest.warns(UserWarning, match="of 70 words are none that training had"):
        assert run.predict(make_tagged().frame.head(70)).equals(out)
    with pytest.warns(UserWarning, match="of 900 words are none that training had"):
        assert run.evaluate("later.csv")["model"]["accuracy"] > 0
    Path("lines.txt").write_text("the garden\n\nwe walk\n")
    assert main(["predict", "runs/tag-1", "lines.txt"]) == 0
    assert [x.partition("\t")[0] for x in capsys.readouterr().out.splitlines()] == [
        "the garden", "we walk",
    ]  # fmt: skip
