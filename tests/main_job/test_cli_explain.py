"""`throughtime explain CELL`: what is told of a cell, and what is wrong in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from throughtime import cells
from throughtime.cli import main
from throughtime.compiler.plan import make_plan
from throughtime.compiler.runtime.machine import host

OWN = '''
from throughtime import Cell
from torch import tanh


class Mine(Cell):
    """Its own."""

    gates = ("h",)
    state = ("h",)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def step(self, a, U, s, p):
        return (tanh(a.h + self.scale * (U.h @ s.h)),)
'''

UNCOMPILED = OWN.replace("Mine", "Running").replace("tanh(a.h", "tanh(a.h.sort(-1).values")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_compiled_cell_with_its_plan_and_machine(
    dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, "LSTM", "--dtype", dtype)
    target = host()
    assert target is not None
    head, middle, end = said.split("\n\n")
    assert head == "LSTM(): cpu"
    assert middle == str(make_plan(cells.LSTM()))
    assert end.startswith(f"machine: {target.name}, {target.registers} registers of ")
    assert f"lanes: {target.lanes(32 if dtype == 'float32' else 64)} of {dtype}\n" in end


def test_a_cell_that_is_not_compiled_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "running.py"
    file.write_text(UNCOMPILED)
    said = told(capsys, f"{file}:Running")
    assert ": reference\n  not cpu: " in said
    assert "\n  not torch: torch has no layer that equals " in said
    assert "phase" not in said


@pytest.mark.parametrize("backward", [False, True])
def test_the_code_of_a_cell(backward: bool, capsys: pytest.CaptureFixture[str]) -> None:
    way, other = ("backward", "forward") if backward else ("forward", "backward")
    more = ["--backward"] if backward else []
    text = told(capsys, "GRU", "--llvm", *more)
    assert f'void @"cell_{way}"(' in text and f"cell_{other}" not in text
    lines = told(capsys, "GRU", "--assembly", *more)
    assert f"cell_{way}:" in lines and "define" not in lines
    both = told(capsys, "GRU", "--assembly", "--llvm", *more)
    assert text.strip() in both and lines.strip() in both


def test_a_cell_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert told(capsys, f"{file}:Mine").startswith("Mine(scale=1.0): cpu\n\nphase 1: ")
    assert told(capsys, str(file)) == told(capsys, f"{file}:mine") == told(capsys, f"{file}:Mine")
    assert told(capsys, f"{file}:Mine(2.5)").startswith("Mine(scale=2.5): cpu\n")


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("lstm", cells.LSTM()), ("Lstm", cells.LSTM()), ("lstm_peephole", cells.LSTMPeephole()),
        ("skip(3)", cells.Skip(3)), ("rnn", cells.Elman()), ("elman('relu')", cells.Elman("relu")),
    ],
)  # fmt: skip
def test_a_name_is_known_whatever_its_case(
    name: str, cell: cells.Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, name).startswith(f"{cell!r}: cpu\n")


def test_check_says_which_laws_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert main(["check", f"{file}:Mine", "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Mine(scale=1.0): 11 laws hold\n  gradients_are_right\n")
    file.write_text(OWN.replace("s.h)),)", "s.h).detach()),)"))
    assert main(["check", f"{file}:Mine"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Mine(scale=1.0) breaks ") and "gradients_are_right (" in said
    assert main(["check", "lstn"]) == 2
    assert "got 'lstn'; did you mean LSTM?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["LSTN"], "cell must be one of CoRNN, Elman, "),
        (["LSTN"], "got 'LSTN'; did you mean LSTM?"),
        (["GRU", "--dtype", "float23"], "got 'float23'; did you mean float32?"),
        (
            ["Skip"],
            "a name with the values it is built of, as in 'Skip(2)' or \"Elman('relu')\", got",
        ),
        (["Skip"], "missing 1 required positional argument: 'distance')"),
        (["Skip(1)"], "distance must be an integer of at least 2, got 1"),
        (["Elman(os.system)"], "got 'Elman(os.system)' (they must be written"),
        (["GRU(1)"], "got 'GRU(1)' (GRU"),
        ([f"Skip({'(' * 500}{')' * 500})"], "(they must be written out)"),
        (["Skip(((("], "cell must be a name or FILE.py:NAME, got 'Skip(((('"),
        ([""], "cell must be a name or FILE.py:NAME, got ''"),
        (["two.py"], "two.py defines several cells, Mine, Other; name one: two.py:Mine"),
        (["broken.py:Mine"], "broken.py, line 2, raises SyntaxError: "),
        (
            ["zeros.py:Mine"],
            "must be Python, and it is not (source code string cannot contain null",
        ),
        (["folder.py:Mine"], "folder.py cannot be used (Is a directory)"),
        (["raises.py:Mine"], "raises.py, line 13, raises ZeroDivisionError: division by zero"),
        (["later.py:Mine"], "later.py, line 16, raises KeyError: 'h'"),
        (["nowhere.py:Mine"], "nowhere.py cannot be used (No such file or directory)"),
        (["mine.py:Mein"], "cell must be one of Mine, got 'Mein'; did you mean Mine?"),
        (["empty.py:Mine"], "empty.py must define a cell, a class below throughtime.Cell"),
        (["(2)"], "cell must be a name or FILE.py:NAME, got '(2)'"),
        (
            ["running.py:Running", "--llvm"],
            "there is no code to show: sort has no rule",
        ),
        ([], "missing CELL; see throughtime explain --help"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "running.py").write_text(UNCOMPILED)
    (tmp_path / "two.py").write_text(OWN + OWN.replace("Mine", "Other"))
    (tmp_path / "broken.py").write_text("x = 1\nclass (:\n")
    (tmp_path / "zeros.py").write_bytes(b"x = 1\0")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "raises.py").write_text(OWN.replace("self.scale = scale", "self.scale = 1 / 0"))
    (tmp_path / "later.py").write_text(OWN.replace("return (", "{}['h']\n        return ("))
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ") and found.err.count("\n") == 1
    assert said in found.err
