"""a, U, s and p hold names and matrices; whatever else a step does with them is refused by line."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.compiler.test_refusals import Broken
from throughtime import Cell, Recurrent, cells, check
from throughtime.compiler import trace
from throughtime.errors import CellError


def set_state(a: Any, U: Any, s: Any, p: Any) -> Any:
    s.h = s.h * 2
    return s.h


A_HOLDS, U_HOLDS = "a; it holds names, read as a.i, a.gap", "U; it holds matrices, used as U.i @ v"
S_HOLDS, MATRIX = "s; it holds names, read as s.h, s.c", "U.hr is a matrix and stands only left of"
MISUSES: dict[str, tuple[Any, str]] = {
    "called": (lambda a, U, s, p: U.hr(s.c), f"step calls U.hr; {MATRIX}"),
    "matrix +": (lambda a, U, s, p: U.hr + 1, f"step computes with U.hr; {MATRIX}"),
    "+ matrix": (lambda a, U, s, p: s.h + U.hr, f"step computes with U.hr; {MATRIX}"),
    "2 matrix": (lambda a, U, s, p: (2 * U.hr) @ s.c, f"step computes with U.hr; {MATRIX}"),
    "rows": (lambda a, U, s, p: U.hr[0] @ s.c, f"step indexes U.hr; {MATRIX}"),
    "linear": (lambda a, U, s, p: F.linear(s.c, U.hr), f"step computes with U.hr; {MATRIX}"),
    "tanh": (lambda a, U, s, p: torch.tanh(U.hr), f"step hands U.hr to torch's tanh; {MATRIX}"),
    "a[]": (lambda a, U, s, p: a["i"], f"step indexes {A_HOLDS}"),
    "U[]": (lambda a, U, s, p: U["hr"] @ s.c, f"step indexes {U_HOLDS}"),
    "U @": (lambda a, U, s, p: U @ s.h, f"step computes with {U_HOLDS}"),
    "U()": (lambda a, U, s, p: U(s.h), f"step calls {U_HOLDS}"),
    "@ s": (lambda a, U, s, p: U.hr @ s, "U.hr multiplies s, which is no vector"),
    "s + ": (lambda a, U, s, p: s + s.h, f"step computes with {S_HOLDS}"),
    "+ s": (lambda a, U, s, p: s.h + s, f"step computes with {S_HOLDS}"),
    "tanh(s)": (lambda a, U, s, p: torch.tanh(s), f"step hands s to torch's tanh; {S_HOLDS[3:]}"),
    "cat": (lambda a, U, s, p: torch.cat([s.h, s]), f"step hands s to torch's cat; {S_HOLDS[3:]}"),
    "unpack": (lambda a, U, s, p: [*s][0], f"step iterates over {S_HOLDS}"),
    "p()": (lambda a, U, s, p: p("u"), "step calls p; it holds names, read as p.u"),
    "set": (set_state, "step sets s.h; it holds names, read as s.h, s.c"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_refused_with_its_line_and_the_cure(name: str) -> None:
    function, reason = MISUSES[name]
    for build in (trace, lambda cell: Recurrent(cell, 3, 4), check):
        with pytest.raises(CellError, match=re.escape(reason)) as caught:
            build(Broken(function))
        place = re.search(r"\n  at (.+):(\d+): (.+)$", str(caught.value))
        assert place is not None and place[1] == __file__
        lines, first = inspect.getsourcelines(function)
        assert lines[int(place[2]) - first].strip() == place[3]


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (lambda s: s, r"Returned.step must return a tuple of 2 \(h, c\), got s\n"),
        (lambda s: (s.h, s), r"Returned.step returns s as c\n"),
    ],
    ids=["all of it", "in the tuple"],
)
def test_names_are_no_state(new: Any, reason: str) -> None:
    def step(self: Any, a: Any, U: Any, s: Any, p: Any) -> Any:
        return new(s)

    cell = type("Returned", (Cell,), {"gates": ("h",), "state": ("h", "c"), "step": step})()
    with pytest.raises(CellError, match=rf"^{reason}  at .*test_misuse.py:\d+: return new\(s\)$"):
        trace(cell)


def three(self: Any, a: Any, U: Any, s: Any) -> tuple[Any]:
    return (torch.tanh(a.h + U.h @ s.h),)


def five(self: Any, a: Any, U: Any, s: Any, p: Any, extra: Any) -> tuple[Any]:
    return (torch.tanh(a.h + U.h @ s.h),)


@pytest.mark.parametrize("step", [three, five])
def test_step_takes_four_arguments(step: Any) -> None:
    cell = type("Wrong", (Cell,), {"gates": ("h",), "state": ("h",), "step": step})()
    text = rf"Wrong.step must take \(self, a, U, s, p\), .*, got .*\n  at .*: def {step.__name__}"
    with pytest.raises(CellError, match=text):
        Recurrent(cell, 3, 4)


def test_more_names_for_the_arguments_are_fine() -> None:
    def step(self: Any, *given: Any, more: int = 0) -> tuple[Any]:
        a, U, s, _ = given
        return (torch.tanh(a.h + U.h @ s.h),)

    cell = type("Any", (Cell,), {"gates": ("h",), "state": ("h",), "step": step})()
    assert trace(cell).unsupported == ()


@pytest.mark.parametrize("build", [check, trace, lambda cell: Recurrent(cell, 3, 4)])
def test_what_is_no_cell(build: Any) -> None:
    text = "^cell must be an instance of a Cell, got "
    with pytest.raises(CellError, match=text + r"<class .*GRU'>; build one: GRU\(\)$"):
        build(cells.GRU)
    with pytest.raises(CellError, match=text + r"'GRU'$"):
        build("GRU")
    with pytest.raises(CellError, match=text + "Recurrent.*; a layer holds its own as layer.cell$"):
        build(Recurrent(cells.GRU(), 3, 4))
