"""What cannot be one graph for every input is refused, with the line it stands on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from throughtime import cells
from throughtime.cells import Cell
from throughtime.compiler import trace
from throughtime.errors import CellError


class Broken(Cell):
    """A step of two states of different width whose new h is in the hands of a function."""

    gates = ("i",)
    state = {"h": "proj_size", "c": "hidden_size"}
    products = {"hr": ("h", "c")}
    vectors = {"u": 1.0}
    inputs = {"gap": 1}
    proj_size = 4

    def __init__(self, new_h: Callable[[Any, Any, Any, Any], Any]) -> None:
        self.new_h = new_h

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        return self.new_h(a, U, s, p), a.i + U.i @ s.h


class Returns(Cell):
    """A step that returns what a function gives."""

    gates = ("h",)
    state = ("h", "c")

    def __init__(self, new: Callable[[Any], Any]) -> None:
        self.new = new

    def step(self, a: Any, U: Any, s: Any, p: Any) -> Any:
        x = a.h + s.h
        if self.new is None:
            return None
        return self.new(x)


def branch(a: Any, U: Any, s: Any, p: Any) -> Any:
    h = s.h
    if (h > 0).any():
        h = -h
    return h


def loop(a: Any, U: Any, s: Any, p: Any) -> Any:
    h = s.h
    for row in h:
        h = h + row
    return h


def in_place(a: Any, U: Any, s: Any, p: Any) -> Any:
    h = s.h
    h += 1
    return h


def in_place_item(a: Any, U: Any, s: Any, p: Any) -> Any:
    s.h[0] = 1
    return s.h


def attribute_written(a: Any, U: Any, s: Any, p: Any) -> Any:
    s.h.data = s.h
    return s.h


VALUE = "asks for the value of a tensor by {}, but the equations must be the same for every input"
BY_VALUE: dict[str, tuple[Any, str]] = {
    "if": (branch, "if, while, and, or, not, assert or bool()"),
    "for": (loop, "iterating over it"),
    "bool": (lambda a, U, s, p: s.h * bool(s.h.sum()), "if, while, and, or, not"),
    "float": (lambda a, U, s, p: s.h * float(s.h.mean()), "float()"),
    "int": (lambda a, U, s, p: s.h * int(s.h.sum()), "int()"),
    "len": (lambda a, U, s, p: s.h * len(s.h), "len()"),
    "index": (lambda a, U, s, p: s.h * [1, 2][s.h.argmax()], "using it as an index"),
    "item": (lambda a, U, s, p: s.h * s.h.max().item(), "item()"),
    "tolist": (lambda a, U, s, p: s.h * s.h.tolist()[0][0], "tolist()"),
    "numpy": (lambda a, U, s, p: s.h * s.h.numpy(), "numpy()"),
    "asarray": (lambda a, U, s, p: s.h * np.asarray(s.h), "making it a NumPy array"),
    "equal": (lambda a, U, s, p: s.h * torch.equal(s.h, s.h), "equal()"),
    "in": (lambda a, U, s, p: s.h * (1 in s.h), "in"),
    "format": (lambda a, U, s, p: s.h * len(f"{s.h:.3f}"), "writing it into a text"),
    "chained": (lambda a, U, s, p: torch.where(-1 < s.h < 1, s.h, 1), "if, while, and, or, not"),
}

WIDTHS: dict[str, tuple[Any, str]] = {
    "sum": (
        lambda a, U, s, p: s.h + s.c,
        "add needs values of one width, got s.h of shape (B, proj_size) and s.c of shape "
        "(B, hidden_size)",
    ),
    "vector": (
        lambda a, U, s, p: s.h * p.u,
        "mul needs values of one width, got s.h of shape (B, proj_size) and p.u of shape "
        "(hidden_size)",
    ),
    "where": (
        lambda a, U, s, p: torch.where(s.c > 0, s.h, 1),
        "where needs values of one width, got a value of shape (B, hidden_size) and s.h",
    ),
    "product": (
        lambda a, U, s, p: U.hr @ s.h,
        "U.hr multiplies a vector of shape (B, hidden_size), got s.h of shape (B, proj_size)",
    ),
    "gate": (
        lambda a, U, s, p: U.hr @ (U.i @ s.c),
        "U.i multiplies a vector of shape (B, proj_size), got s.c of shape (B, hidden_size)",
    ),
    "product with p": (
        lambda a, U, s, p: U.hr @ p.u,
        "U.hr multiplies a vector of shape (B, hidden_size), got p.u of shape (hidden_size)",
    ),
    "product with number": (lambda a, U, s, p: U.hr @ 2, "U.hr multiplies int"),
}

NAMES: dict[str, tuple[Any, str]] = {
    "a": (lambda a, U, s, p: a.q, "step reads a.q, which the cell does not declare: i, gap"),
    "U": (lambda a, U, s, p: U.q @ s.h, "step reads U.q, which the cell does not declare: i, hr"),
    "s": (lambda a, U, s, p: s.n, "step reads s.n, which the cell does not declare: h, c"),
    "p": (lambda a, U, s, p: p.n, "step reads p.n, which the cell does not declare: u"),
    "matrix": (lambda a, U, s, p: U.hr * s.c, "U.hr is a matrix and stands only left of @"),
    "right": (lambda a, U, s, p: s.c @ U.hr, "U.hr is a matrix and stands only left of @"),
    "transpose": (lambda a, U, s, p: U.hr.T @ s.h, "step reads U.hr.T; a matrix has only U.hr @ v"),
}

WRITES: dict[str, tuple[Any, str]] = {
    "+=": (in_place, "step writes into a tensor in place (iadd)"),
    "[]=": (in_place_item, "step writes into a tensor in place (setitem)"),
    "method": (lambda a, U, s, p: s.h.mul_(2), "step writes into a tensor in place (mul_)"),
    "function": (lambda a, U, s, p: torch.relu_(s.h), "step writes into a tensor in place (relu_)"),
    "inplace=": (
        lambda a, U, s, p: F.relu(s.h, inplace=True),
        "step writes into a tensor in place (relu)",
    ),
    "out=": (lambda a, U, s, p: torch.add(s.h, 1, out=s.h), "in place (add)"),
    "attribute": (attribute_written, "step sets .data of a tensor, which must not be written"),
}


def by_value() -> dict[str, tuple[Any, str]]:
    return {f"value {k}": (f, VALUE.format(what)[:50]) for k, (f, what) in BY_VALUE.items()}


ALL = by_value() | WIDTHS | NAMES | WRITES


@pytest.mark.parametrize("name", ALL)
def test_a_refusal_says_why_and_where(name: str) -> None:
    function, reason = ALL[name]
    with pytest.raises(CellError, match=re.escape(reason)) as caught:
        trace(Broken(function))
    text = str(caught.value)
    place = re.search(r"\n  at (.+):(\d+): (.+)$", text)
    assert place is not None, text
    assert place[1] == __file__
    lines, first = inspect.getsourcelines(function)
    number = int(place[2])
    assert first <= number < first + len(lines), text
    assert lines[number - first].strip() == place[3]


@pytest.mark.parametrize("name", BY_VALUE)
def test_a_value_asked_for_names_how_and_the_cure(name: str) -> None:
    function, what = BY_VALUE[name]
    with pytest.raises(CellError, match=re.escape(f"by {what}")) as caught:
        trace(Broken(function))
    of_numpy, of_all = (
        "use torch's own, such as torch.tanh",
        "use torch.where(condition, x, y) to choose",
    )
    assert (of_numpy if "NumPy" in what else of_all) in str(caught.value)


def test_the_very_line_is_named() -> None:
    lines, first = inspect.getsourcelines(branch)
    with pytest.raises(CellError, match=rf":{first + 2}: if \(h > 0\).any\(\):$"):
        trace(Broken(branch))


RETURNED: dict[str, tuple[Any, str]] = {
    "too few": (lambda x: (x,), "must return a tuple of 2 (h, c), got 1 values"),
    "list": (lambda x: [x, x], "must return a tuple of 2 (h, c), got list"),
    "tensor": (lambda x: x, "must return a tuple of 2 (h, c), got a tensor"),
    "one a row": (
        lambda x: (x, x.sum(-1, keepdim=True)),
        "must return c as numbers of shape (B, hidden_size), got a value of shape (B, 1)",
    ),
    "number": (lambda x: (x, 1.0), "must return c as numbers of shape (B, hidden_size), got"),
    "boolean": (lambda x: (x > 0, x), "must return h as numbers of shape (B, hidden_size), got"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_a_wrong_return_is_refused_at_the_return(name: str) -> None:
    function, reason = RETURNED[name]
    with pytest.raises(CellError, match=re.escape(reason)) as caught:
        trace(Returns(function))
    assert str(caught.value).endswith(": return self.new(x)")


def test_no_return_is_refused() -> None:
    with pytest.raises(CellError, match=r"must return a tuple of 2 \(h, c\), got NoneType"):
        trace(Returns(None))


def test_a_mistake_of_the_step_is_raised_as_it_is() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        trace(Returns(lambda x: (x, None + {})))
    with pytest.raises(NameError, match="unknown_name"):
        trace(Returns(lambda x: (x, unknown_name)))  # noqa: F821
    with pytest.raises(TypeError, match="descriptor|tanh"):
        trace(Returns(lambda x: (x, torch.tanh(x, x))))


def test_a_line_of_the_package_is_named_for_its_cells() -> None:
    def seen(v: Any) -> Any:
        return v if v.sum() > 0 else -v

    with pytest.raises(CellError, match=r"test_refusals.py:\d+: return v if v.sum\(\) > 0 else -v"):
        trace(cells.Elman(seen))
