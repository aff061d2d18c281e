"""The command line: what is wrong is one sentence, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import throughtime
from tests.house.source import ROOT
from throughtime import cells
from throughtime.cli import main
from throughtime.tasks import available, find
from throughtime.tasks.recipe import Recipe
from throughtime.train.run import Run, create, read

pytestmark = pytest.mark.usefixtures("dictionary_in_small")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence a refused command says."""
    assert main([str(one) for one in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "no such command: trian; did you mean train?"),
        (["help"], "no such command: help; see throughtime --help"),
        (["--hlep"], "no such option: --hlep; did you mean --help?"),
        (["-x"], "no such option: -x; see throughtime --help"),
        ([""], "no such command: ; see throughtime --help"),
        (["train", "latch", "-q"], "no such option: -q; see throughtime train --help"),
        (["train", "latch", "parity"], "unexpected argument: parity; see throughtime train"),
        (["train", "latch", "--steps"], "--steps expected one argument; see throughtime train"),
        (["cells", "gru"], "unexpected argument: gru; see throughtime cells --help"),
        (
            ["diagnose", "run", "--lag", "far"],
            "--lag must be a whole number below 2147483648, got 'far'; see",
        ),
        (["diagnose", "run", "--clip", "far"], "--clip must be a number, got 'far'; see thr"),
        (["train", "pronounce", "--stesp", "3"], "no such option: --stesp; did you mean --steps?"),
        (["train", "pronounce", "--qqq"], "no such option: --qqq; see throughtime train --help"),
        (
            ["train", "pronunce"],
            f"task must be one of {', '.join(available())}, got 'pronunce'; did you mean "
            "pronounce?",
        ),
        (
            ["train", "pronounce", "--length", "9"],
            "length must be left out, since pronounce does not read it, got 9",
        ),
        (["train"], "missing TASK; see throughtime train --help"),
        (["train", "pronounce", "--cell", "lstn"], "got 'lstn'; did you mean LSTM?"),
        (["train", "latch", "--dropout", "0.1"], "dropout must be left out, since latch does not"),
        (
            ["train", "latch", "--horizon", "2"],
            "horizon must be 0 or a whole number of at least 3, g",
        ),
        (["train", "latch", "--threads", "1025"], "threads must be a whole number of at least 0 a"),
        (["train", "latch", "--hidden", "9" * 30], "and below 2147483648, got 99999"),
        (["train", "latch", "--hidden", "9" * 400], "got a number of some 400 digits"),
        (["train", "latch", "--hidden", "100000000"], "GiB of memory, and it needs at least 596,"),
        (["train", "pronounce", "--hidden", "100000000"], "with hidden 100000000, batch_size 256;"),
        (["train", "latch", "--length", "100000000"], "length 100000000; make them smaller"),
        (["train", "latch", "--batch-size", "1000000000"], "hidden 32, batch_size 1000000000, len"),
        (["train", "latch", "--cell", "rnn", "--start", "chrono"], "no gate that keeps its state"),
        (["train", "pronounce", "--preset", "ful"], "preset must be one of quick, full, got 'ful'"),
        (["train", "pronounce", "--layers", "3"], "layers must be a whole number of at least 1 an"),
        (["train", "pronounce", "--steps", "-3"], "steps must be a whole number of at least 1, go"),
        (["train", "pronounce", "--lr", "nan"], "lr must be a finite number above 0, got nan"),
        (["train", "pronounce", "--lr", "fast"], "lr must be a finite number above 0, got 'fast'"),
        (
            ["predict", "nowhere", "word"],
            "a run is a folder with a config.json, and nowhere/config",
        ),
        (["evaluate", "nowhere"], "name the folder that `throughtime train` printed"),
        (["evaluate", "nowhere", "--split", "tset"], "got 'tset'; did you mean test?"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_makes_nothing(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "missing ITEM; see throughtime predict --help"),
        (
            ["a" * 101],
            "a word must have at most 100 letters, and 'aaaaaaaaaaaaaaaaaaaa'... has 101",
        ),
        (["./nowhere"], "./nowhere cannot be used (No such file or directory); see that it can"),
        ([""], "a word must have at least one letter, got ''; leave it out"),
        (["naïve"], "got 'ï' in 'naïve'; spell it without that letter"),
        (["two words"], "got ' ' in 'two words'"),
    ],
)
def test_a_word_the_model_cannot_take_is_one_sentence(
    words: list[str], said: str, trained_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "predict", trained_run.folder, *words)


def test_a_folder_in_use_or_not_writable_is_one_sentence(
    trained_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(trained_run.folder.iterdir())
    said = refused(capsys, "train", "pronounce", "--out", trained_run.folder)
    assert "go on with what is there with --resume, or name another folder with --out" in said
    assert sorted(trained_run.folder.iterdir()) == before
    (tmp_path / "file").write_text("")
    said = refused(capsys, "train", "pronounce", "--out", tmp_path / "file" / "a" / "run")
    assert "must be writable, and it is not (Not a directory); name another folder with" in said


def test_a_resumed_run_keeps_its_options(
    trained_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "pronounce", "--resume", "--out", trained_run.folder, "--hidden", "9"]
    said = refused(capsys, *arguments)
    assert f"a resumed run keeps its options, and --hidden is 6 in {trained_run.folder}" in said


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncated": content[:middle],
        "empty": b"",
        "tampered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "longer": content + b"\0",
    }
    file.write_bytes(damaged[kind])


@pytest.mark.parametrize("kind", ["truncated", "empty", "tampered", "longer"])
def test_a_damaged_checkpoint_is_one_sentence_and_its_cure_works(
    kind: str, copied_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copied_run.checkpoint, kind)
    resume = ["train", "pronounce", "--resume", "--out", str(copied_run.folder)]
    said = refused(capsys, *resume)
    assert "checkpoint.pt must have the content its checksum was made from, and it is trunc" in said
    assert "delete it to go on from checkpoint-previous.pt, which gives the same weights" in said
    weights = copied_run.weights.read_bytes()
    copied_run.weights.unlink()
    copied_run.checkpoint.unlink()
    assert main(resume) == 0
    assert copied_run.weights.read_bytes() == weights


@pytest.mark.parametrize("kind", ["truncated", "empty", "tampered", "longer"])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_damaged_weights_are_one_sentence(
    kind: str, command: str, copied_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copied_run.weights, kind)
    said = refused(capsys, command, copied_run.folder, *(["time"] if command == "predict" else []))
    assert "weights.safetensors must " in said
    assert "restore the file, or write it again with --resume while the checkpoint is" in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_one_sentence(
    bad: float, copied_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from throughtime.train.storage import read_checkpoint, write_checkpoint, write_weights

    state = read_checkpoint(copied_run)
    assert state is not None
    state["model"]["mix.bias"][3] = bad
    write_weights(copied_run, state["model"])
    del state["recipe"]
    write_checkpoint(copied_run, state)
    said = refused(capsys, "predict", copied_run.folder, "time")
    assert "weights must be finite, and mix.bias in" in said
    assert "has 1 values that are NaN or infinite" in said
    said = refused(capsys, "train", "pronounce", "--resume", "--out", copied_run.folder)
    assert "and model.mix.bias has values that are NaN or infinite; delete it to go on from" in said


def test_a_config_of_another_run_is_one_sentence(
    copied_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copied_run.folder / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"hidden": 9}))
    said = refused(capsys, "predict", copied_run.folder, "time")
    assert "must hold the weights of the model in config.json, and " in said
    said = refused(capsys, "train", "pronounce", "--resume", "--out", copied_run.folder)
    assert "must be of one run, and hidden is 9 in the one and 6 in the other; restore" in said


def test_a_run_without_weights_says_how_to_get_them(
    copied_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    copied_run.weights.unlink()
    said = refused(capsys, "predict", copied_run.folder, "time")
    assert f"end it with: throughtime train pronounce --resume --out {copied_run.folder}" in said


def test_debug_shows_where_an_error_arose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "nowhere", "word", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error: a run is a folder with a config.json")


def test_a_run_that_was_never_begun_goes_from_nothing_to_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = (
        "--hidden 4 --steps 4 --batch-size 8 --validate-every 2 --threads 1 --cell gru --merge sum"
    )
    assert main(["train", "pronounce", *flags.split()]) == 0
    said = capsys.readouterr().out
    assert "try it: throughtime predict runs/pronounce-1 WORD..." in said
    for word in ("kept out of training", "WER: share of words", "chance", "truth", "wer_stress"):
        assert word in said
    run = read(Path("runs/pronounce-1"))
    assert (run.recipe.cell, run.recipe.merge, run.recipe.hidden) == ("gru", "sum", 4)
    results = json.loads(run.results.read_text())
    assert results["steps"] == 4
    assert f"{100 * results['test']['metrics']['per']:.2f} %" in said
    shutil.rmtree("runs")


def test_every_option_has_a_flag_with_a_help_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in fields(Recipe):
        if field.name != "task":
            assert f"--{field.name.replace('_', '-')} " in shown
            assert field.metadata["help"] in shown
    assert "--resume" in shown
    assert "--out" in shown
    (resume,) = (line for line in shown.splitlines() if "--resume" in line)
    assert "<bool>" not in resume, "it takes no value"
    assert "come from. Default: quick." in shown
    assert "Training steps (a whole number of at least 1). Default: the task's." in shown
    for name, kind in available().items():
        assert f"  {name:<10} {inspect.getdoc(kind).splitlines()[0]}" in shown
    assert "Defaults of one of them: throughtime train latch --help" in shown


@pytest.mark.parametrize("name", ["latch", "pronounce", "digits"])
def test_the_help_of_a_task_has_its_defaults_and_no_option_it_does_not_read(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["train", name, "--help"]) == 0
    parts = " ".join(capsys.readouterr().out.partition("\ntasks:")[0].split()).split(". --")
    shown = {f"--{part.partition(' ')[0]}": part.rstrip(".") for part in parts}
    kind = find(name)
    for field in fields(Recipe):
        option = f"--{field.name.replace('_', '-')}"
        if field.name in ("task", *kind.ignores):
            assert option not in shown
            continue
        quick, full = (kind.presets[p].get(field.name, field.default) for p in ("quick", "full"))
        more = "" if quick == full else f", with --preset full {full}"
        assert shown[option].endswith(f"Default: {quick}{more}")


def test_version_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"throughtime {throughtime.__version__}\n"
    assert main(["cells"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list(cells.available())
    for line, kind in zip(shown, cells.available().values(), strict=True):
        assert line.endswith(inspect.getdoc(kind).splitlines()[0])


def test_without_a_command_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    for command in ("train", "predict", "evaluate", "cells"):
        assert command in shown.out + shown.err
    assert "--debug" in shown.out + shown.err


def test_ctrl_c_says_how_to_go_on_and_the_weights_are_the_same(
    trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from throughtime.train.learner import Learner

    run = create(tmp_path / "run", trained_run.recipe)
    resume = ["train", "pronounce", "--resume", "--out", str(run.folder)]
    step = Learner.step

    def interrupted(self: Learner) -> None:
        step(self)
        if self.done == 11:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", interrupted)
        assert main(resume) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    said = capsys.readouterr().err
    assert f"stopped at step 11; go on with: throughtime {' '.join(resume)}" in said
    assert "Traceback" not in said
    assert main(resume) == 0
    assert run.weights.read_bytes() == trained_run.weights.read_bytes()


def test_ctrl_c_before_the_first_step_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from throughtime.cli.commands import train

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "show_training", interrupted)
    assert main(["train", "latch", "--out", str(tmp_path / "runs" / "run")]) == 130
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_there_stays_when_nothing_comes_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from throughtime.cli.commands import train

    def failed(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(train, "show_training", failed)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "latch", "--out", "."]) == 2
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("where", "code"), [("/dev/full", 2), ("a closed pipe", 141)])
def test_an_output_that_takes_nothing(where: str, code: int) -> None:
    program = "import sys; from throughtime.cli import main; sys.exit(main(['cells']))"
    if where == "/dev/full":
        output = os.open(where, os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    with os.fdopen(output, "wb") as sink:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, stdout=sink, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code
    expected = "error: the output, or a file, cannot be used (No space left on device); see that"
    assert done.stderr.startswith(expected) if code == 2 else done.stderr == ""
    assert done.stderr.count("\n") == (code == 2)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 2147483648 b"),
    ],
)
def test_memory_that_is_not_there_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("throughtime.cli.commands.cells.available", fail)
    size = "2 GiB at once" if isinstance(error, RuntimeError) else "more"
    assert refused(capsys, "cells") == (
        f"error: this machine has not enough memory for {size}; make sizes smaller, say "
        "--batch-size\n"
    )


def test_what_is_no_share_is_not_shown_in_percent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--steps 1 --length 6 --hidden 2 --batch-size 4 --threads 1".split()
    assert main(["train", "adding", *flags, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    (row,) = (line.split() for line in shown.out.splitlines() if line.startswith("mse "))
    assert row[2] == "0.1667" and float(row[1]) > 0 and "%" not in row
    assert "validation: mse" in shown.err and "%" not in shown.err
    assert "predict" not in shown.out, "nobody has questions for it"
