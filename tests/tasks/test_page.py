"""The page of a run: what stands on it, with the numbers of the run."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.main_job.small import small_dictionary
from throughtime.cli import main
from throughtime.cli.shown import save_plot, show_table
from throughtime.errors import MissingExtra
from throughtime.tasks.picture import Curve, Plot, draw_confusion, draw_knowledge
from throughtime.tasks.recipe import FileRecipe
from throughtime.tasks.translate.model import END, START, Translator

SMALL = "--hidden 4 --steps 6 --validate-every 3 --threads 1 --log-every 2".split()


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warnings.filterwarnings("ignore", module="lightning_utilities|pytorch_lightning")


def test_a_forecast_has_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "forecast", "--horizon", "6", "--out", "run", *SMALL]) == 0
    assert "report: run/report.html" in capsys.readouterr().out
    page = Path("run/report.html").read_text("utf-8")
    titles = re.findall(r"<h2><span>(\w)</span> ([^<]+)</h2>", page)
    assert [number for number, _ in titles] == [*"ABCD", *"12345678"]
    assert [title for _, title in titles[:4]] == [
        "How did it learn?", "What does it forecast?", "How does the error grow?",
        "Does the band hold what it says?",
    ]  # fmt: skip
    results = json.loads(Path("run/results.json").read_text())
    assert f"<td>{results['metrics']['mae']:.3g}</td>" in page
    for words in ("linear on lags", "town", "village", "How far back it learned", "Vanishing"):
        assert words in page
    assert main(["diagnose", "run", "--lag", "9"]) == 0
    again = Path("run/report.html").read_text("utf-8")
    assert "What does it forecast?" in again and "<dd>9 steps</dd>" in again


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_has_its_numbers_and_the_same_bits_each_time(ending: str) -> None:
    curves = (
        Curve("0.1 to 0.9", [1, 2], [0, 1], "band", [2, 3]),
        Curve("a $x_1$ <b>", [1, 2], [1.5, float("nan")]),
        Curve("points", [1, 2], [1, 2], "points", beside=True),
    )
    names = tuple(f"name {n}" for n in range(6))
    plots = (
        Plot("what is said", "steps", "size", curves, line=(0.8, "0.8"), of="whose"),
        Plot("a map", "said", "right", rows=(("é", [0.1] * 6), ("b", [0.5] * 6)), columns=names),
    )
    for plot in plots:
        for name in ("one", "two"):
            save_plot(plot, Path(f"{name}.{ending}"))
        one, two = (Path(f"{name}.{ending}").read_bytes() for name in ("one", "two"))
        assert one == two and one.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_plots_without_matplotlib_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"matplotlib"):
        save_plot(Plot("what is said", "x", "y"), Path("a.png"))


def test_classes_and_a_run_that_cannot_be_diagnosed_have_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such <model>")

    monkeypatch.setattr("throughtime.cli.commands.train.report_run", refuse)
    assert main(["train", "classify", "--out", "run", "--plots", "svg", *SMALL]) == 0
    drawn = sorted(path.name for path in Path("run/plots").iterdir())
    assert drawn[0] == "01-loss-of-training-by-step.svg" and "03-confusion-matrix.svg" in drawn
    assert all("<svg" in Path("run/plots", name).read_text("utf-8") for name in drawn)
    page = Path("run/report.html").read_text("utf-8")
    assert "Which classes does it take for which?" in page
    assert "There is no memory report of this run: no such &lt;model&gt;" in page


def titles_of(run: str) -> list[str]:
    page = Path(run, "report.html").read_text("utf-8")
    found: list[str] = re.findall(r"<h2><span>\w</span> ([^<]+)</h2>", page)
    return found


def charts_of(run: str, says: str) -> list[dict[str, Any]]:
    """The curves and maps of the charts that show something."""
    page = Path(run, "report.html").read_text("utf-8")
    form = f'aria-label="{says}[^"]*"><script type="application/json">(.+?)</script>'
    return [trace for one in re.findall(form, page) for trace in json.loads(one)["data"]]


def test_tags_have_their_matrix_and_what_each_layer_knows() -> None:
    assert main(["train", "tag", "--out", "run", *SMALL]) == 0
    assert titles_of("run")[:3] == [
        "How did it learn?", "Which labels does it take for which?", "What does each layer know?",
    ]  # fmt: skip
    probe = json.loads(Path("run/results.json").read_text())["probe"]
    drawn = [one for one in charts_of("run", "share read right") if one["name"] == "as it is"]
    assert [one["y"] for one in drawn] == [
        [row["accuracy"] for row in probe if row["of"] == of] for of in ("label", "word's class")
    ]
    assert "How far back it learned" in Path("run/report.html").read_text("utf-8")


@pytest.mark.parametrize("task", ["translate", "pronounce"])
def test_translations_have_their_attention(task: str) -> None:
    with small_dictionary():
        assert main(["train", task, "--out", "run", *SMALL]) == 0
    assert titles_of("run")[1] == "Where does it look?"
    looks = charts_of("run", "weights of attention over")
    assert len(looks) == 3
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for one in looks for row in one["z"])
    page = Path("run/report.html").read_text("utf-8")
    assert "How far back it learned" in page
    assert (task == "translate") == ("In numbers: greedy" in page)
    if task == "translate":
        (row,) = json.loads(Path("run/results.json").read_text())["greedy"]
        assert f"<li>chrf {row['chrf']:.4g}, bleu {row['bleu']:.4g}" in page
    assert (task == "translate") == ("What does each layer know?" in page)


def test_attention_is_the_softmax_of_the_scores() -> None:
    torch.manual_seed(0)
    model = Translator(FileRecipe(hidden=3, dropout=0.0), 6, 5).eval()
    source, target = torch.tensor([2, 3, 4, 5]), torch.tensor([3, 4, END])
    outputs = model.encoder(model.source(source[:, None]))
    memory, state = model.encode(source[:, None])
    out = model.decoder(model.target(torch.tensor([[START], [3], [4]])), state)[0][:, 0]
    keys = outputs[0][:, 0] @ model.key.weight.T
    assert torch.allclose(model.align(source, target), (out @ keys.T).softmax(-1), atol=1e-6)
    read = (out @ keys.T).softmax(-1) @ outputs[0][:, 0]
    assert torch.allclose(model.attend(out[:, None], memory)[:, 0], read, atol=1e-6)


def test_what_is_known_is_said_and_drawn() -> None:
    row = {"of": "label", "place": "input", "accuracy": 0.5, "shuffled_labels": 0.25,
           "most_frequent": 0.3, "held_out": 8}  # fmt: skip
    rows = [row, row | {"place": "layer 0", "accuracy": 0.75}, {"of": "kind", "not measured": "no"}]
    picture = draw_knowledge(rows)
    assert picture.says == (
        "The label is read best from layer 0, 75.0 %; there shuffled labels are read to "
        "25.0 %.", "Of the kind nothing was measured: no.",
    )  # fmt: skip
    (plot,) = picture.plots
    assert plot.columns == ("input", "layer 0") and plot.curves[0].y == [0.5, 0.75]
    assert plot.line == (0.3, "the most frequent one") and len(picture.table) == 2


def test_of_many_classes_the_most_frequent_are_shown() -> None:
    truth = torch.arange(25).repeat_interleave(torch.arange(1, 26))
    picture = draw_confusion(truth.clamp(max=23), truth, [f"c{n}" for n in range(25)], "labels")
    (plot,) = picture.plots
    assert plot.columns == tuple(f"c{n}" for n in range(5, 25))
    assert picture.says == (
        "25 of c24 are taken for c23.", "Of 25 labels the 20 most frequent ones are shown.",
    )  # fmt: skip
    assert picture.table[-1] == ("c24", *[0] * 18, 25, 0)


def test_the_matrix_counts_what_was_said_of_each_class() -> None:
    said, truth = torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0, 1, 0, 0, 1])
    picture = draw_confusion(said, truth, ["a", "b"])
    assert picture.table == (("a", 1, 2), ("b", 1, 1))
    assert picture.says == ("2 of a are taken for b.", "1 of b are taken for a.")
    shares = dict(picture.plots[0].rows)
    assert shares["a"] == pytest.approx([1 / 3, 2 / 3]) and shares["b"] == [0.5, 0.5]


def test_cells_of_a_table_are_shown_as_they_are(capsys) -> None:
    show_table([("[red]", ":key:"), ("[/x]", "a")], "[b]", ":cat:")
    assert capsys.readouterr().out.split() == ["[b]", ":cat:", "[red]", ":key:", "[/x]", "a"]
