"""What a step reads from outside is part of what a cell is; a step that draws is not compiled."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from throughtime import Cell, Recurrent, cells
from throughtime.compiler.trace import trace
from throughtime.errors import CellError

RATE = 0.1
HELD = SimpleNamespace(rate=0.1)


class ByClass(Cell):
    """Reads an attribute of its class."""

    gates = ("h",)
    state = ("h",)
    rate = 0.1

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return ((1 - self.rate) * s.h + self.rate * torch.tanh(a.h + U.h @ s.h),)


class ByGlobal(ByClass):
    """Reads a global, by a function of its own."""

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (mixed(s.h, torch.tanh(a.h + U.h @ s.h)),)


class ByObject(ByClass):
    """Reads an attribute of an object."""

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return ((1 - HELD.rate) * s.h + HELD.rate * torch.tanh(a.h + U.h @ s.h),)


def mixed(old: Any, new: Any) -> Any:
    return (1 - RATE) * old + RATE * new


def patched(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return (0.1 * s.h + 0.9 * torch.tanh(a.h + U.h @ s.h),)


@pytest.mark.parametrize("kind", [ByClass, ByGlobal, ByObject, "step"])
def test_a_new_layer_has_the_new_numbers(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {ByGlobal: (__name__, "RATE"), ByObject: (HELD, "rate")}.get(kind, (ByClass, "rate"))
    kind, new = (kind, 0.9) if kind != "step" else (ByClass, patched)
    x, old = torch.randn(5, 2, 3), Recurrent(kind(), 3, 4)
    old(x)
    if new is patched:
        monkeypatch.setattr(ByClass, "step", patched)
    elif place[0] is __name__:
        monkeypatch.setitem(globals(), "RATE", new)
    else:
        monkeypatch.setattr(*place, new)
    layer = Recurrent(kind(), 3, 4, return_state=False, backend="cpu")
    y = layer(x)
    layer.backend = "reference"
    torch.testing.assert_close(y, layer(x))
    assert layer.cell != old.cell and layer.cell.key != old.cell.key
    assert Recurrent(kind(), 3, 4).cell is layer.cell


def test_a_step_that_tosses_a_coin_is_never_compiled() -> None:
    for seed in range(6):
        random.seed(seed)

        class Tossing(Cell):
            gates = ("h",)
            state = ("h",)

            def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
                return (torch.tanh(a.h + U.h @ s.h) * random.choice([1.0, 2.0]),)

        (reason,) = trace(Tossing()).unsupported[-1:]
        assert "random number" in reason.operation or "changes from call" in reason.operation
        assert "random.choice" in reason.line.text


LINEAR = torch.nn.Linear(4, 4)
WEIGHT = torch.nn.Parameter(torch.ones(4))


def whole(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return (torch.tanh(a.h + U.h @ s.h),)


def linear(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return (torch.tanh(a.h + LINEAR(s.h)),)


def weight(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return (torch.tanh(a.h + WEIGHT * s.h),)


def ones(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return (torch.tanh(a.h + torch.ones(16) * s.h),)


def numpy(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return (np.tanh(a.h + U.h @ s.h),)


def summed(self: Any, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
    return ((a.h + s.h).sum(-1),)


WORDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "vectors": (whole, {"vectors": ("rate",)}, r"vectors must be a dictionary, such as {'rate': 0"),
    "blocks": (whole, {"blocks": 4}, r"blocks must be a dictionary, such as {'m': 4}, got 4"),
    "gates": (whole, {"gates": ["h"]}, r"gates must be a tuple .*got \['h'\]; write \('h',\)"),
    "keeps": (whole, {"keeps": {"q": 1}}, r"map a gate or vector .* got 'q': 1; there are h"),
    "linear": (
        linear,
        {},
        r"must read no weights .* got LINEAR, a Linear;(?s:.)*at .*\.py:",
    ),
    "weight": (weight, {}, r"got WEIGHT, a Parameter; declare"),
    "ones": (ones, {}, r"at hidden_size 4 it raises .* \(16\) must match .*(?s:.)*ones\(16\)"),
    "numpy": (numpy, {}, r"torch.tanh for np.tanh(?s:.)*np\.tanh\(a\.h"),
    "summed": (summed, {}, r"must return h with shape \(2, 4\), got \(2,\)(?s:.)*\.py:"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_mistake_is_one_sentence_with_its_line(name: str) -> None:
    step, more, text = WORDS[name]
    with pytest.raises(CellError, match=text):
        Recurrent(
            type("My", (Cell,), {"gates": ("h",), "state": ("h",), "step": step, **more})(), 3, 4
        )


def test_how_far_a_connection_may_skip() -> None:
    with pytest.raises(CellError, match="at most 256, .* got 10000000"):
        cells.Skip(10_000_000)
