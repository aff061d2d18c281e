"""Asking a trained model: at once, with the answers its figures stand for."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source import ROOT
from throughtime.cli import main
from throughtime.tasks.pronounce import error_rates, read_dictionary, take_side
from throughtime.train.result import load_trained
from throughtime.train.run import Run

ASK = """
import sys, throughtime.cli
code = throughtime.cli.main(sys.argv[1:])
print(code, "pytorch_lightning" in sys.modules)
"""


@pytest.mark.usefixtures("dictionary_in_small")
def test_what_is_predicted_is_what_was_evaluated(
    trained_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = take_side(read_dictionary(), "test")
    assert main(["predict", str(trained_run.folder), *listed]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = {word: tuple(said.split()) for word, said in (line.split("\t") for line in lines)}
    assert list(answers) == list(listed)
    task, model = load_trained(trained_run)
    assert error_rates(answers, listed) == task.score(model, "test").metrics
    assert main(["evaluate", str(trained_run.folder)]) == 0
    assert f"{100 * error_rates(answers, listed)['per_stress']:.2f} %" in capsys.readouterr().out


@pytest.mark.usefixtures("dictionary_in_small")
def test_a_word_has_one_answer_whatever_stands_beside_it(trained_run: Run) -> None:
    task, model = load_trained(trained_run)
    words = ["time", "recurrent", "a", "Time", "time"]
    together = task.answer(model, words)
    assert together == [task.answer(model, [word])[0] for word in words]
    assert together[0] == together[3] == together[4]


@pytest.mark.usefixtures("dictionary_in_small")
def test_files_and_standard_input_are_read_and_what_has_no_answer_is_named(
    trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_bytes(b"\xef\xbb\xbftime\r\n\n na\xc3\xafve \n\xff\nwork")
    Path("time").write_text("a word may be the name of a file")
    pipe = io.TextIOWrapper(io.BytesIO(b"hello\nw0rld\n"))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert main(["predict", str(trained_run.folder), "time", "", "words.txt", "-", "a"]) == 2
    shown = capsys.readouterr()
    words = ["time", "time", "work", "hello", "a"]
    task, model = load_trained(trained_run)
    answers = task.answer(model, words)
    assert shown.out == "".join(f"{w}\t{a}\n" for w, a in zip(words, answers, strict=True))
    assert [line.partition(" must")[0] for line in shown.err.splitlines()] == [
        "error: a word",
        "error: words.txt, line 3: a word",
        "error: words.txt, line 4: a word",
        "error: standard input, line 2: a word",
    ]
    assert "got 'ï' in 'naïve'" in shown.err and "got '0' in 'w0rld'" in shown.err
    assert main(["predict", str(trained_run.folder), "./time"]) == 2
    assert "./time, line 1: a word must be spelled" in capsys.readouterr().err
    assert main(["predict", str(trained_run.folder), "wrods.txt"]) == 2
    assert "wrods.txt cannot be used (No such file" in capsys.readouterr().err


@pytest.mark.usefixtures("dictionary_in_small")
def test_many_lines_are_answered_in_their_order(
    trained_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in read_dictionary() if len(word) < 5][:400]
    file = tmp_path / "many.txt"
    file.write_text("\n".join(words * 3))
    assert main(["predict", str(trained_run.folder), str(file)]) == 0
    task, model = load_trained(trained_run)
    expected = [f"{w}\t{a}" for w, a in zip(words, task.answer(model, words), strict=True)]
    assert capsys.readouterr().out.splitlines() == expected * 3


@pytest.mark.usefixtures("dictionary_in_small")
def test_chance_is_the_most_frequent_pronunciation(trained_run: Run) -> None:
    task, _ = load_trained(trained_run)
    chance = task.chance("test")
    assert 0.9 < chance["wer"] <= chance["wer_stress"] <= 1
    assert 0.5 < chance["per"] <= chance["per_stress"]


def test_the_first_answer_comes_in_three_seconds_without_lightning(trained_run: Run) -> None:
    command = [sys.executable, "-c", ASK, "predict", str(trained_run.folder), "time"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.startswith("time\t"), done.stderr
    assert done.stdout.splitlines()[-1] == "0 False"
    # Of the processor: the clock on the wall would also see who else uses this machine.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 3
