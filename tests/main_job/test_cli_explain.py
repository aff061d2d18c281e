"""`throughtime explain CELL`: what is told of a cell, and what is wrong in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from throughtime import cells
from throughtime.cli import main
from throughtime.compiler.llvm.machine import host
from throughtime.compiler.plan import plan

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

UNCOMPILED = OWN.replace("Mine", "Running").replace("tanh(a.h", "tanh(a.h.cumsum(-1)")


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
    assert middle == str(plan(cells.LSTM()))
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
    assert told(capsys, f"{file}:Mine(2.5)").startswith("Mine(scale=2.5): cpu\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["LSTN"], "cell must be one of CoRNN, Elman, "),
        (["LSTN"], "got 'LSTN'; did you mean LSTM?"),
        (["GRU", "--dtype", "float23"], "got 'float23'; did you mean float32?"),
        (
            ["Skip"],
            "a name with the values it is built of, as in 'Name(2)', got 'Skip' (Skip.__init",
        ),
        (["Skip"], "missing 1 required positional argument: 'distance')"),
        (["Skip(1)"], "distance must be an integer of at least 2, got 1"),
        (["Elman(os.system)"], "got 'Elman(os.system)' (malformed"),
        (["GRU(1)"], "as in 'Name(2)', got 'GRU(1)' ("),
        (["nowhere.py:Mine"], "nowhere.py cannot be used (No such file or directory)"),
        (["mine.py:Mein"], "cell must be one of Mine, got 'Mein'; did you mean Mine?"),
        (["empty.py:Mine"], "empty.py must define a cell, a class below throughtime.Cell"),
        (["(2)"], "cell must be a name or FILE.py:NAME, got '(2)'"),
        (
            ["running.py:Running", "--llvm"],
            "there is no code to show: cumsum has no rule",
        ),
        ([], "missing argument 'cell'; see throughtime explain --help"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "running.py").write_text(UNCOMPILED)
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ") and found.err.count("\n") == 1
    assert said in found.err
