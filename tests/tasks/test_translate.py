"""Translations: pairs from all forms, sides that share nothing, search and figures by hand."""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from statistics import mean

import polars as pl
import pytest
import torch

import throughtime
from tests.house.source import ROOT
from throughtime.cli import main
from throughtime.errors import DataError, OptionError
from throughtime.tasks import find
from throughtime.tasks.picture import _label_neighbours
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.tag.find import make_tagged
from throughtime.tasks.task import IGNORED
from throughtime.tasks.translate import Translate
from throughtime.tasks.translate.find import make_pairs
from throughtime.tasks.translate.model import END, START, Translator, decode_greedily, search_beam
from throughtime.tasks.translate.units import Cutter, Lexicon, find_merges, join, measure
from throughtime.train.loop import fit
from throughtime.train.run import begin, go_on, resolve


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(**options: object) -> Translate:
    task = Translate(resolve(Translate, {"hidden": 4, "threads": 1, **options}))
    assert isinstance(task, Translate)
    return task


PAIRS = [(f'he said "{n}", then NA', f"dijo «{n}»; NA") for n in range(40)]


def write_as(form: str) -> dict[str, str]:
    """PAIRS in a file of a form, and the options that read it."""
    frame = pl.DataFrame(PAIRS, schema=["english", "spanish"], orient="row")
    file = Path(f"data.{form.partition(' ')[0]}")
    if form == "tsv":  # lines with a tab, no header, quotation marks as text
        file.write_text("\n".join("\t".join(pair) for pair in PAIRS))
    elif form == "txt header":
        file.write_text("\n".join("\t".join(pair) for pair in [("english", "spanish"), *PAIRS]))
    elif form == "csv":
        frame.write_csv(file)
    elif form == "csv named":
        frame.with_columns(n=pl.lit(1)).select("n", "spanish", "english").write_csv(file)
        return {"data": str(file), "source": "english", "target": "spanish"}
    elif form == "csv usual":
        frame.select(n=1, target="spanish", source="english").write_csv(file, separator=";")
    elif form == "jsonl":  # an object within an object
        lines = [json.dumps({"of": {"en": one, "es": other}}) for one, other in PAIRS]
        file.write_text("\n".join(lines))
    else:
        frame.write_parquet(file)
    return {"data": str(file)}


FORMS = ["tsv", "txt header", "csv", "csv named", "csv usual", "jsonl", "parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pairs_and_sides(form: str) -> None:
    sides = {
        side: sorted(zip(one.sources, one.targets, strict=True))
        for side, one in made(**write_as(form))._pairs.items()
    }
    assert sorted(pair for one in sides.values() for pair in one) == sorted(PAIRS)
    assert [len(sides[s]) for s in ("train", "validation", "test")] == [32, 4, 4]
    assert sides == {
        side: sorted(zip(one.sources, one.targets, strict=True))
        for side, one in made(**write_as("csv"))._pairs.items()
    }


def test_sources_and_targets_stand_on_one_side() -> None:
    rows = [(f"a{n // 2}", f"b{(n + 1) // 2 if n % 10 else n}") for n in range(200)]
    pl.DataFrame(rows, schema=["x", "y"], orient="row").write_csv("data.csv")
    sides = made(data="data.csv", header="yes")._pairs
    for one, other in itertools.combinations(sides.values(), 2):
        assert not {*one.sources} & {*other.sources} and not {*one.targets} & {*other.targets}
    assert sum(len(one.sources) for one in sides.values()) == 200


def test_units_are_of_training_alone_and_come_back_as_text() -> None:
    rows = [(f"w{n} x", f"v{n}, y") for n in range(60)]
    pl.DataFrame(rows, schema=["source", "target"], orient="row").write_csv("data.csv")
    task = made(data="data.csv", units="words")
    train = task._pairs["train"]
    assert {*task.facts.source_units} == {w for text in train.sources for w in text.split()}
    assert task.facts.targets.unit(task.facts.targets.number("nowhere")) == "?"
    text = "¿Qué dijo «el gato», eh? ¡(Nada) más, l'ami-là!"
    assert join(Cutter("words")(text), "words") == text
    assert join(Cutter("characters")(text), "characters") == text


def test_pieces_are_those_by_hand() -> None:
    texts = ["low low low low low", "lower lower", "newest newest newest", "widest widest widest"]
    j = "\uffed"
    # e s: 6, then es t: 6, then l o: 7 is the most from the beginning, and lo w: 7.
    assert find_merges(texts, 4) == [f"l {j}o", f"lo {j}w", f"{j}e {j}s", f"{j}es {j}t"]
    cut = Cutter("pieces", tuple(find_merges(texts, 4)))
    assert cut("lowest, low") == ["low", f"{j}est", ",", "low"]
    assert cut("slow") == ["s", f"{j}l", f"{j}o", f"{j}w"]
    counted = [len(cut(text)) for text in texts]
    every = Cutter("pieces", tuple(find_merges(texts)))
    assert [len(every(text)) for text in texts] == [5, 2, 3, 3] <= counted
    text = "¿Qué dijo «el gato lowest», eh? ¡(Nada) más, l'ami-là!"
    assert join(cut(text), "pieces") == text


def test_pieces_found_fast_are_those_found_slowly() -> None:
    texts = make_pairs().frame["english"].head(60).to_list()
    words = [word for text in texts for word in Cutter("words")(text)]
    merges: list[str] = []
    for _ in range(40):
        cut = Cutter("pieces", tuple(merges))
        pairs = Counter(p for word in words for p in itertools.pairwise(cut(word)))
        most = max(pairs.values())
        merges.append(" ".join(min(pair for pair, n in pairs.items() if n == most)))
    assert find_merges(texts, 40) == merges


def test_padding_and_the_batch_around_change_no_answer() -> None:
    task = made()
    model, pairs = task.model().eval(), task._encoded["test"]
    source, lengths, target = pairs.batch(range(9))
    given = torch.where(target == IGNORED, END, target)
    together = model(source, given, lengths)
    for n in range(9):
        one, length, _ = pairs.batch([n])
        alone = model(one, given[:, n : n + 1], length)
        assert torch.allclose(together[:, n], alone[:, 0], rtol=0, atol=1e-5)
        assert torch.allclose(alone, model(one, given[:, n : n + 1]), rtol=0, atol=1e-5)


def small(seed: int = 3) -> tuple[Translator, torch.Tensor, torch.Tensor]:
    """A model whose weights matter, sources (4, 3) and their lengths."""
    torch.manual_seed(seed)
    model = Translator(Recipe(hidden=3, dropout=0.0), 5, 4).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.8)
        model.readout.bias[END] += 1
    return model, torch.randint(2, 5, (4, 3)), torch.tensor([4, 2, 3])


def shares_of(model: Translator, source: torch.Tensor, target: list[int]) -> float:
    given = torch.tensor([START, *target[:-1]])[:, None]
    shares = model(source[:, None], given)[:, 0].log_softmax(-1)
    return float(shares[torch.arange(len(target)), torch.tensor(target)].sum())


@torch.no_grad()
def test_one_beginning_is_greedy_and_many_find_the_likeliest() -> None:
    for seed in range(5):
        model, source, lengths = small(seed)
        alone, one = decode_greedily(model, source, lengths), search_beam(model, source, lengths, 1)
        many = search_beam(model, source, lengths, 27)
        for n, length in enumerate(lengths.tolist()):
            ended = [*alone[:, n].tolist(), END]
            ended = ended[: ended.index(END) + 1]
            assert one[: len(ended), n].tolist() == ended[: len(one)]
            asked = source[:length, n]
            short = [[*units, END] for k in range(3)
                     for units in itertools.product(range(1, 4), repeat=k)]  # fmt: skip
            best = max(shares_of(model, asked, units) / len(units) for units in short)
            said = many[:, n].tolist()
            said = said[: said.index(END) + 1] if END in said else said
            assert shares_of(model, asked, said) / len(said) >= best - 1e-9


def test_figures_are_those_of_sacrebleu_and_by_hand() -> None:
    import sacrebleu

    said, truth = ["the cat sat down here", "no"], ["the cat sat down there", "no"]
    assert measure(said, truth) == {
        "chrf": sacrebleu.corpus_chrf(said, [truth]).score,
        "bleu": sacrebleu.corpus_bleu(said, [truth]).score,
        "exact": 0.5,
    }
    assert measure(truth, truth)["chrf"] == 100


def test_the_lexicon_finds_each_word() -> None:
    pairs = [("the house", "la casa"), ("the book", "el libro"), ("a house", "una casa"),
             ("a book", "un libro"), ("the house", "la casa")]  # fmt: skip
    say = Lexicon(*zip(*pairs, strict=True))
    assert say("a book, Bob") == "un libro, Bob" or say("a book, Bob") == "una libro, Bob"
    assert say("the house") == "la casa"


def test_labels_of_the_units_around() -> None:
    source = torch.tensor([[2, 4], [3, 2], [2, 0]])
    label = {2: 0, 3: 1}
    assert _label_neighbours(source, label, 1, 0).tolist() == [[-1, -1], [0, -1], [1, -1]]
    assert _label_neighbours(source, label, -1, 0).tolist() == [[1, 0], [0, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a,b\n", {}, "must hold at least 10 different pairs, some for each part, and it holds 1"),
        ("a,b,c\n", {}, "translations need --source, a column of data.csv, which has column_1"),
        ("source,target\na,\n", {}, "column target must have a value in every row, and line 2 of"),
        ("source,target\na,b,c\n", {}, "must have 2 cells, as line 1 has, and line 2 has 3"),
        ("source,target\na,b\n", {"source": "sorce"}, "got 'sorce'; did you mean source?"),
        ("source,target\na,b\n", {"source": "source", "target": "source"}, "two columns of data."),
        ("".join(f"{n},b\n" for n in range(20)), {}, "and it holds the same in every row, from li"),
        ("", {}, "data.csv must hold rows, and it is empty (0 bytes)"),
        ("\n \n", {}, "data.csv must hold rows, and all of its lines are empty"),
        ("source,target\n", {}, "data.csv must hold rows, and it has none after its column names"),
        ("\xe9,b\n", {}, "data.csv must be UTF-8, and line 1 is not; convert it"),
        ("x,x\na,b\n", {"header": "yes"}, "must have its own name, got 'x' twice"),
        ("a,b\n", {"delimiter": "ab"}, "--delimiter must be one sign, or tab, got 'ab'"),
        (
            "".join(f"{n},{k}\n" for n in range(4) for k in range(4)), {"header": "no"},
            "has none, since pairs that share a source or a target stand together",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(text: str, options: dict[str, str], said: str) -> None:
    Path("data.csv").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError) as caught:
        made(data="data.csv", **options)
    assert said in str(caught.value)


def test_data_shows_what_would_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", write_as("csv")["data"], "--source", "english"]) == 0
    shown = capsys.readouterr().out
    assert "translate:" in shown and "from english into spanish: 40" in shown


def test_longer_pairs_are_left_out_and_counted() -> None:
    frame = make_pairs().frame.head(200)
    frame.write_csv("data.csv")
    task = made(data="data.csv", longest=30)
    left = sum(len(a) > 30 or len(b) > 30 for a, b in frame.rows())
    assert 0 < left < 200
    assert ("left out", f"{left} with more than 30 characters") in task.describe_data()
    with pytest.raises(OptionError, match="beam must be a whole number of at least 1 and below 65"):
        made(beam=0)


@pytest.mark.parametrize("units", ["characters", "words", "pieces"])
def test_from_a_file_to_predictions(units: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_pairs().frame.head(300).write_csv("data.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = f"--units {units} --hidden 8 --steps 6 --validate-every 3 --threads 1 --beam 2"
        assert main(["train", "translate", "--data", "data.csv", *flags.split()]) == 0
    shown = capsys.readouterr().out
    for words in ("from english into spanish: 300", "copy", "lexicon", "How far back", "greedy",
                  "does not beat the best baseline: chrf"):  # fmt: skip
        assert words in shown
    results = json.loads(Path("runs/translate-1/results.json").read_text())
    assert list(results["metrics"]) == ["chrf", "bleu", "exact"]
    assert all([*one] == [*results["metrics"]] for one in results["baselines"].values())
    assert [one["place"] for one in results["probe"]] == ["input", "layer 0"] * 2
    assert main(["predict", "runs/translate-1", "the red house", "the old dog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("\t")[0] for line in lines] == ["the red house", "the old dog"]
    make_pairs().frame.select("english").tail(7).write_csv("new.csv")
    assert main(["predict", "runs/translate-1", "new.csv", "--out", "out.csv"]) == 0
    out = pl.read_csv("out.csv")
    assert out.columns == ["english", "spanish"] and len(out) == 7
    make_pairs().frame.tail(9).write_csv("later.csv")
    assert main(["evaluate", "runs/translate-1", "later.csv"]) == 0
    assert "later.csv: 9 pairs" in capsys.readouterr().out
    assert len(throughtime.load("runs/translate-1").predict(["a dog"])) == 1


@pytest.mark.parametrize("task", ["tag", "translate"])
def test_a_run_that_goes_on_is_the_run_that_had_all_steps(task: str) -> None:
    table = make_tagged() if task == "tag" else make_pairs()
    table.frame.head(400).write_csv("data.csv")
    given = {"data": "data.csv", "hidden": 4, "threads": 1, "validate_every": 4, "log_every": 4}
    kind = find(task)
    for out, steps in (("whole", 8), ("short", 4)):
        options = {**given, "schedule": "constant", "steps": steps}
        with begin(kind, Path(out), options) as run:
            fit(run)
    fit(go_on(kind, Path("short"), {"steps": 8}))
    weights = [Path(out, "weights.safetensors").read_bytes() for out in ("whole", "short")]
    assert weights[0] == weights[1]


def test_the_page_has_the_figures_that_were_measured() -> None:
    rows = json.loads((ROOT / "benchmarks" / "tasks" / "verses.json").read_text())["rows"]
    page = (ROOT / "docs" / "tasks.md").read_text().partition("Verses of at most 20")[2]
    tables = page.partition("The first three rows")[0]
    steps = {run["steps"] for row in rows[:-1] for run in row["runs"]}
    assert len(steps) == 1 and len({len(row["runs"]) for row in rows[:-1]}) == 1
    for row in rows[:-1]:
        chrf, bleu = (mean(run["metrics"][n] for run in row["runs"]) for n in ("chrf", "bleu"))
        nats = mean(run["validations"][-1]["nats"] for run in row["runs"])
        assert f"| {max(steps)} | {chrf:.1f} | {bleu:.1f} | {nats:.2f} |" in tables
        assert chrf < row["runs"][0]["baselines"]["lexicon"]["chrf"]
    (last,) = rows[-1]["runs"]
    for one in (last["metrics"], *last["greedy"], *last["baselines"].values()):
        assert f"| {one['chrf']:.1f} | {one['bleu']:.1f} |" in tables
    assert last["metrics"]["bleu"] > last["baselines"]["lexicon"]["bleu"]
    assert last["metrics"]["chrf"] < last["baselines"]["lexicon"]["chrf"]


def test_without_sacrebleu_nothing_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("sacrebleu.metrics.bleu", "sacrebleu.metrics.chrf"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["train", "translate"]) == 2
    assert "sacrebleu, which the extra data brings, is needed here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
