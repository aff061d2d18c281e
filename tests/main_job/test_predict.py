"""Asking a trained model: at once, without Lightning, with the answers its figures stand for."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.house.source import ROOT
from throughtime.cli import main
from throughtime.tasks.pronounce.score import rates
from throughtime.tasks.pronounce.words import dictionary, split
from throughtime.train.result import trained
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
    listed = split(dictionary(), "test")
    assert main(["predict", str(trained_run.folder), *listed]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = {word: tuple(said.split()) for word, said in (line.split("\t") for line in lines)}
    assert list(answers) == list(listed)
    task, model = trained(trained_run)
    assert rates(answers, listed) == task.score(model, "test").metrics
    assert main(["evaluate", str(trained_run.folder)]) == 0
    assert f"{100 * rates(answers, listed)['per_stress']:.2f} %" in capsys.readouterr().out


@pytest.mark.usefixtures("dictionary_in_small")
def test_a_word_has_one_answer_whatever_stands_beside_it(trained_run: Run) -> None:
    task, model = trained(trained_run)
    words = ["time", "recurrent", "a", "Time", "time"]
    together = task.answer(model, words)
    assert together == [task.answer(model, [word])[0] for word in words]
    assert together[0] == together[3] == together[4]


@pytest.mark.usefixtures("dictionary_in_small")
def test_chance_is_the_most_frequent_pronunciation(trained_run: Run) -> None:
    task, _ = trained(trained_run)
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
