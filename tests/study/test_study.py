"""`throughtime study` from one command to its report, killed, resumed, extended and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.study.small import outcome, recipe
from throughtime.cli import Commands, main
from throughtime.cli.commands.study import Where, register
from throughtime.compiler.runtime import threads
from throughtime.errors import RunError
from throughtime.train import study as train_study
from throughtime.train.study import Lost
from throughtime.train.study.folder import Folder

TINY = "--task latch --length 6 --steps 100 --validate-every 25 --hidden 16 --lr 0.01".split()


def kept(folder: Path) -> dict[str, tuple[float, str]]:
    """Time and content of every finished run."""
    files = (folder / "runs").glob("*.json")
    return {file.name: (file.stat().st_mtime_ns, file.read_text()) for file in files}


def test_a_grid_goes_from_one_command_to_its_report(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "study"
    words = ["study", *TINY, "--seeds", "2", "--out", str(folder)]
    words += "--cells rnn lstm --init orthogonal chrono".split()
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("6 runs, 0 of them done before\n")
    assert "left out: rnn from chrono: Elman has no gate that keeps its state" in shown.out
    assert f"report: {folder}/study.md" in shown.out
    found = json.loads((folder / "study.json").read_text())
    assert found["shared"]["task"] == "latch" and found["shared"]["hidden"] == 16
    assert [(r["cell"], r["start"], r["seeds"]) for r in found["table"]] == [
        ("lstm", "chrono", 2),
        ("lstm", "orthogonal", 2),
        ("rnn", "orthogonal", 2),
    ]
    assert len(found["outcomes"]) == 6 and found["lost"] == []
    rnn = found["table"][2]
    assert rnn["solved"] == 2 and rnn["steps"] <= 100 and rnn["seconds"] > 0
    assert rnn["parameters"] == 16 * (16 + 1 + 2) + 2 * (16 + 1)
    page = (folder / "study.md").read_text()
    assert f"| rnn | orthogonal | 6 | 2 of 2 | {rnn['steps']:.0f} |" in page
    assert "share of wrong signs" in page and "left out: rnn from chrono" in page
    assert "every run: preset quick, layers 1, hidden 16, horizon 0, steps 100, " in page
    before = kept(folder)
    assert main(["study", *TINY, "--seeds", "1", "--cells", "gru", "--out", str(folder)]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("over 6, seed") == 6, "every start of the new cell"
    assert {name: kept(folder)[name] for name in before} == before, "nothing was done again"
    assert len(json.loads((folder / "study.json").read_text())["outcomes"]) == 12
    assert "rnn" in shown.out, "the report is of all there is"


def test_a_killed_study_goes_on(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "study"
    words = ["study", *TINY, *"--cells rnn --init torch orthogonal --seeds 3".split()]
    words += ["--jobs", "2", "--out", str(folder)]
    code = "import sys; from throughtime.cli import main; sys.exit(main(sys.argv[1:]))"
    study = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
    try:
        while not kept(folder) and study.poll() is None:
            time.sleep(0.02)
    finally:
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
    before = kept(folder)
    assert 1 <= len(before) < 6
    assert main(words) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"6 runs, {len(before)} of them done before\n")
    assert said.count("over 6, seed") == 6 - len(before)
    after = kept(folder)
    assert len(after) == 6 and {name: after[name] for name in before} == before


def test_a_run_that_fails_is_a_row_with_its_reason(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "study"
    words = "study --task adding --cells rnn --init torch --seeds 1 --length 6 --steps 20".split()
    words += ["--lr", "1e38", "--clip", "none", "--out", str(folder)]
    assert main(words) == 0
    assert "rnn from torch over 6, seed 0: the loss must stay finite" in capsys.readouterr().out
    (row,) = json.loads((folder / "study.json").read_text())["table"]
    assert row["solved"] == 0 and row["seeds"] == 1 and "must stay finite" in row["failed"][0]
    assert main(words) == 0
    assert "1 runs, 1 of them done before" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence a refused study says."""
    assert main(["study", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.out == ""
    return said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "missing --task; see throughtime study --help"),
        ("--task lach", "got 'lach'; did you mean latch?"),
        ("--task pronounce", "a study is of a memory task, adding, copy, "),
        ("--task latch --cells rnn lstn", "got 'lstn'; did you mean lstm?"),
        ("--task latch --init chorno", "got 'chorno'; did you mean chrono?"),
        ("--task latch --cells rnn --init chrono forget", "a cell and a start that go together"),
        ("--task latch --length 100 3", "length must be a whole number of at least 4, got 3"),
        ("--task latch --length 100 many", "of at least 4, got 'many'"),
        ("--task latch --seeds 0", "of at least 1 and at most 1000, got 0"),
        (
            "--task latch --seeds 1001",
            "seeds must be a whole number of at least 1 and at most 1000",
        ),
        (
            "--task latch --seeds many",
            "--seeds must be a whole number below 2147483648, got 'many'",
        ),
        ("--task latch --hidden 100000000", "with hidden 100000000, batch_size 32, length 100; ma"),
        ("--task latch --length 100000000", "length 100000000; make them smaller"),
        ("--task latch --dropout 0.5", "no such option: --dropout"),
        ("--task latch --jobs -1", "jobs must be a whole number of at least 0, got -1"),
        ("--task latch --steps 0", "steps must be a whole number of at least 1, got 0"),
        ("--task latch --start tosch", "got 'tosch'; did you mean torch?"),
        ("--task latch --patience 3", "no such option: --patience"),
    ],
)
def test_a_wrong_command_is_one_sentence(words: str, said: str, capsys, tmp_path) -> None:
    assert said in refused(capsys, *words.split(), "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys) -> None:
    folder = Folder(tmp_path / "study", recipe())
    folder.keep(outcome("rnn", "torch", 6, 0))
    again = Folder(tmp_path / "study", recipe(cell="gru", length=99, seed=4, threads=2))
    assert again.outcomes() == [outcome("rnn", "torch", 6, 0)]
    words = ["--task", "latch", "--out", folder.path]
    assert "goes on with the options it began with, and hidden is 4 in" in refused(capsys, *words)
    with pytest.raises(RunError, match=r"task is 'latch' in .*, got 'order'; name another folder"):
        Folder(folder.path, recipe("order"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="must be the folder of a study, or empty, or not there"):
        Folder(tmp_path / "other", recipe())
    with pytest.raises(RunError, match="must be writable, and it is not .Not a directory"):
        Folder(tmp_path / "other" / "notes.txt" / "study", recipe())


@pytest.mark.parametrize(
    "content",
    ["", "[", "[" * 100_000, "[]", "{}", '{"shared": 3}', '{"shared": [1]}', '{"shared": null}'],
    ids=range(8),
)
def test_a_damaged_study_is_one_sentence(content: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "study.json").write_text(content)
    said = refused(capsys, "--task", "latch", "--out", tmp_path)
    assert (
        "must be the folder of a study, or empty, or not there yet, and its study.json is" in said
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": 4.0}, "and hidden is 4.0 in .*, got 4; name another folder"),
        ({"hidden": 10**400}, "and hidden is a number of some 400 digits in"),
        ({"hidden": [4]}, r"and hidden is \[4\] in"),
        ({"of_a_newer_version": 1}, "and of_a_newer_version is 1 in .*, got None"),
        ("hidden", "and hidden is None in .*, got 4"),
    ],
)
def test_other_options_of_a_study_are_named(change: object, said: str, tmp_path: Path) -> None:
    Folder(tmp_path, recipe())
    file = tmp_path / "study.json"
    shared = json.loads(file.read_text())["shared"]
    if isinstance(change, dict):
        shared |= change
    else:
        del shared[change]
    file.write_text(json.dumps({"shared": shared}))
    with pytest.raises(RunError, match=said):
        Folder(tmp_path, recipe())


@pytest.mark.parametrize(
    "content",
    [
        "", "{}", "[1, 2]", '{"cell": "rnn"', "[" * 100_000, '"text"', "3",
        {"seed": -1}, {"seed": 1.5}, {"seed": True}, {"seed": None}, {"cell": ["rnn"]},
        {"seconds": "long"}, {"metric": 10**400}, {"parameters": 10**400}, {"solved": 1},
        {"validations": [[1]]}, {"validations": [[1, "x"]]}, {"validations": None},
        {"failed": 3}, {"solved_at_step": -1}, {"more": 1},
    ],
    ids=range(22),
)  # fmt: skip
def test_a_damaged_run_is_one_sentence(content: str | dict, tmp_path: Path) -> None:
    folder = Folder(tmp_path, recipe())
    folder.keep(outcome("rnn", "torch", 6, 0))
    (file,) = (tmp_path / "runs").iterdir()
    whole = json.loads(file.read_text())
    file.write_text(content if isinstance(content, str) else json.dumps(whole | content))
    with pytest.raises(RunError, match=r"torch-6-0.json must be .*; delete it to do the run again"):
        folder.outcomes()


def test_what_a_run_came_to_is_read_back_as_it_was(tmp_path: Path) -> None:
    folder = Folder(tmp_path, recipe())
    many = [
        outcome("rnn", "torch", 6, 0, metric=float("inf"), failed="it broke", solved_at_step=3),
        outcome("rnn", "torch", 6, 1, metric=None, validations=[[20, 0.5]], seconds=1.5),
    ]
    for one in many:
        folder.keep(one)
    assert folder.outcomes() == many


def test_two_studies_do_not_share_a_folder(tmp_path: Path, capsys) -> None:
    from throughtime.train.run import lock

    words = ["--task", "latch", "--out", tmp_path / "study"]
    Folder(tmp_path / "study", recipe(hidden=32, length=100))
    with lock(tmp_path / "study"):
        assert "one process at a time trains in a folder" in refused(capsys, *words)


def test_a_list_may_follow_its_option() -> None:
    commands = Commands([])
    register(commands)
    words = "--cells a b --seeds 3 --length 1 2 --length 3 --init x --start y --task t".split()
    values = commands.find("study").parse(words)
    expected = {
        "cells": ["a", "b"], "seeds": 3, "length": ["1", "2", "3"], "init": ["x", "y"], "task": "t",
    }  # fmt: skip
    assert {name: value for name, value in values.items() if value is not None} == {
        **expected, "jobs": 0, "on": "local", "dry_run": False, "trials": 50, "words": ("study",),
    }  # fmt: skip


@pytest.mark.parametrize(
    "reason", ["[enforce fail at alloc_cpu.cpp:1] no memory", "[/tmp/x] :key:"]
)
def test_a_reason_with_brackets_is_shown_as_it_is(
    reason: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Lost(recipe(), reason)
    monkeypatch.setattr(Where, "begin", lambda where, recipes: (one for one in [lost]))
    folder = Folder(tmp_path / "study", recipe())
    assert Where("local", 1, None).run(folder, [recipe()], 1, 0) == [lost]
    assert reason in capsys.readouterr().err


def test_a_study_has_as_many_jobs_as_its_container_has_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_quota", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(train_study, "run_on_processes", lambda recipes, *how: how)
    assert Where("local", 0, None).begin([]) == (1, 1)
