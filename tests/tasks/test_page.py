"""The page of a run: what stands on it, with the numbers of the run."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from throughtime.cli import main
from throughtime.tasks.classify import confusion

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


def test_classes_and_a_run_that_cannot_be_diagnosed_have_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such <model>")

    monkeypatch.setattr("throughtime.cli.shown.of_run", refuse)
    assert main(["train", "classify", "--out", "run", *SMALL]) == 0
    page = Path("run/report.html").read_text("utf-8")
    assert "Which classes does it take for which?" in page
    assert "There is no memory report of this run: no such &lt;model&gt;" in page


def test_the_matrix_counts_what_was_said_of_each_class() -> None:
    said, truth = torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0, 1, 0, 0, 1])
    picture = confusion(said, truth, ["a", "b"])
    assert picture.table == (("a", 1, 2), ("b", 1, 1))
    assert picture.says == ("2 of a are taken for b.", "1 of b are taken for a.")
    shares = dict(picture.plots[0].rows)
    assert shares["a"] == pytest.approx([1 / 3, 2 / 3]) and shares["b"] == [0.5, 0.5]
