"""explain(): which backend takes the call, why not those before it, and what is not compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.layers.own import Decaying
from throughtime import LSTM, Cell, Recurrent, cells
from throughtime.errors import BackendError


class Cumulative(Cell):
    """Its running sum over units has no rule of derivative here."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h).cumsum(-1),)


def test_a_cell_with_an_equal_in_torch() -> None:
    layer = Recurrent(cells.LSTM(), 3, [4, 5])
    assert layer.explain() == "layer 0: torch\nlayer 1: torch"
    no_steps = "reference\n  not torch: torch's layer needs at least one time step"
    assert layer.explain(steps=0) == f"layer 0: {no_steps}\nlayer 1: {no_steps}"


def test_why_not_torch() -> None:
    layer = Recurrent(cells.GRU(), 3, 4, recurrent_dropout=0.5)
    reason = "torch's layer does not offer a recurrent dropout"
    assert layer.explain() == f"layer 0: reference\n  not torch: {reason}"
    assert layer.eval().explain() == "layer 0: torch"
    assert "not torch: torch's layer does not offer zoneout" in Recurrent(
        cells.GRU(), 3, 4, zoneout=0.1
    ).explain()  # fmt: skip
    assert Recurrent(cells.MGU(), 3, 4).explain() == (
        "layer 0: reference\n  not torch: torch has no layer that equals MGU"
    )
    assert Recurrent(cells.GRU(), 3, 4, dilation=5).explain(steps=7) == "layer 0: torch"


def test_a_named_backend() -> None:
    assert Recurrent(cells.GRU(), 3, 4, backend="reference").explain() == "layer 0: reference"
    layer = Recurrent(cells.MGU(), 3, 4, backend="torch")
    text = "backend 'torch' cannot run this call: torch has no layer that equals MGU"
    assert layer.explain() == f"layer 0: none, since {text}; use backend='auto'"
    with pytest.raises(BackendError, match=text):
        layer(torch.randn(5, 2, 3))


KINDS: dict[str, tuple[Any, str | None]] = {
    "lengths": (lambda layer, x: layer(x, lengths=[3] * 2), None),
    "reset": (lambda layer, x: layer(x, reset=torch.zeros(5, 2, dtype=torch.bool)), "resets"),
    "trace": (lambda layer, x: layer.trace(x), "the sequence of every state"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("make", [LSTM, lambda I, H, **o: Recurrent(cells.LSTM(), I, H, **o)])
def test_what_the_call_is_given(kind: str, dilation: int, make: Any) -> None:
    """What is told for a call of a kind is what happens to one: torch refuses it or does not."""
    call, reason = KINDS[kind]
    options = {} if make is LSTM else {"dilation": dilation}
    text = (
        "torch"
        if reason is None
        else f"reference\n  not torch: torch's layer does not offer {reason}"
    )
    assert make(3, 4, **options).explain(5, 2, **{kind: True}) == f"layer 0: {text}"
    named, x = make(3, 4, backend="torch", **options), torch.randn(5, 2, 3)
    if reason is None:
        assert named.explain(5, 2, **{kind: True}) == "layer 0: torch"
        call(named, x)
    else:
        with pytest.raises(BackendError) as caught:
            call(named, x)
        assert named.explain(5, 2, **{kind: True}) == f"layer 0: none, since {caught.value}"


def test_a_cell_with_direct_inputs() -> None:
    layer = Recurrent(Decaying(), 3, [4, 4], dilation=2)
    told = "reference\n  not torch: torch has no layer that equals Decaying"
    assert layer.explain(5, lengths=True) == f"layer 0: {told}\nlayer 1: {told}"


def test_an_operation_without_a_rule_is_told_with_its_line() -> None:
    text = Recurrent(Cumulative(), 3, 4).explain()
    first, second, third = text.splitlines()
    assert first == "layer 0: reference"
    assert second == "  not torch: torch has no layer that equals Cumulative"
    assert third.startswith("  cumsum has no rule, which keeps the cell uncompiled: ")
    assert (
        "test_explain.py" in third and "return (torch.tanh(a.h + U.h @ s.h).cumsum(-1),)" in third
    )
