"""explain(): which backend takes the call, why not those before it, and what is not compiled."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

from throughtime import LSTM, Cell, LSTMCell, Recurrent, cells
from throughtime.errors import BackendError, OptionError


class Sorting(Cell):
    """Its order of units has no rule of derivative here."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h).sort(-1).values,)


def refusals(cpu: str, torch: str | None) -> str:
    """What is told of a call that compiled code does not take, nor torch's layer."""
    told = f"\n  not cpu: {cpu}"
    return f"torch{told}" if torch is None else f"reference{told}\n  not torch: {torch}"


def test_a_cell_that_is_compiled() -> None:
    for cell in (cells.LSTM(), cells.LSTMPeephole()):
        layer = Recurrent(cell, 3, [4, 5])
        assert layer.explain() == layer.explain(steps=0) == "layer 0: cpu\nlayer 1: cpu"
    assert Recurrent(cells.GRU(), 3, 4, dilation=5).explain(steps=7) == "layer 0: cpu"


def test_a_layer_with_masks_is_compiled() -> None:
    layer = Recurrent(cells.LSTM(), 3, 4, recurrent_dropout=0.5, zoneout=0.1)
    assert layer.explain() == layer.eval().explain() == "layer 0: cpu"


def test_why_neither_compiled_nor_torch() -> None:
    cell, half = cells.LSTM(), torch.bfloat16
    reason = "it computes in float32 and float64, and the input is bfloat16"
    layer = Recurrent(cell, 3, 4, recurrent_dropout=0.5, dtype=half)
    told = refusals(reason, "torch's layer does not offer a recurrent dropout")
    assert layer.explain() == f"layer 0: {told}"
    assert layer.eval().explain().startswith("layer 0: torch")
    layer = Recurrent(cell, 3, 4, zoneout=0.1, dtype=half)
    assert "not torch: torch's layer does not offer zoneout" in layer.explain()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Sorting(), "sort has no rule, which keeps Sorting uncompiled: "),
    ],
    ids=repr,
)
def test_why_a_cell_is_not_compiled(cell: Cell, reason: str) -> None:
    with warnings.catch_warnings():  # once a cell, and another test may have been the first
        warnings.simplefilter("ignore")
        first, second, *_ = Recurrent(cell, 3, 4).explain().splitlines()
    assert first == f"layer 0: {'torch' if cell.torch_equivalent else 'reference'}"
    assert second.startswith(f"  not cpu: {reason}")
    layer = Recurrent(cell, 3, 4, backend="cpu")
    with pytest.raises(BackendError, match=f"backend 'cpu' cannot run .*{re.escape(reason)}"):
        layer(torch.randn(5, 2, 3))


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2"])
@pytest.mark.parametrize("layer", [LSTM(3, 4), Recurrent(cells.LSTM(), 3, 4)], ids=repr)
def test_sizes_that_cannot_be(layer: Any, wrong: Any) -> None:
    with pytest.raises(OptionError, match=f"^steps must be an integer from 0 on, got {wrong!r}$"):
        layer.explain(steps=wrong)
    with pytest.raises(OptionError, match=f"^batch must be an integer from 0 on, got {wrong!r}$"):
        layer.explain(batch=wrong)
    with pytest.raises(OptionError, match=f"^batch must be an integer from 0 on, got {wrong!r}$"):
        LSTMCell(3, 4).explain(wrong)


def test_why_a_dtype_is_not_compiled() -> None:
    told = "it computes in float32 and float64, and the input is bfloat16"
    layer = Recurrent(cells.LSTM(), 3, 4, dtype=torch.bfloat16)
    assert layer.explain() == f"layer 0: {refusals(told, None)}"


def test_autocast_is_told() -> None:
    layer = Recurrent(cells.LSTM(), 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = refusals("autocast rounds products, which compiled code does not", None)
        assert layer.explain() == f"layer 0: {told}"


def test_a_named_backend() -> None:
    for name in ("reference", "torch", "cpu"):
        assert Recurrent(cells.GRU(), 3, 4, backend=name).explain() == f"layer 0: {name}"
    layer = Recurrent(cells.MGU(), 3, 4, backend="torch")
    text = "backend 'torch' cannot run this call: torch has no layer that equals MGU"
    assert layer.explain() == f"layer 0: none, since {text}; use backend='auto'"
    with pytest.raises(BackendError, match=text):
        layer(torch.randn(5, 2, 3))


KINDS: dict[str, tuple[Any, set[str]]] = {
    "lengths": (lambda layer, x: layer(x, lengths=[3] * 2), set()),
    "reset": (lambda layer, x: layer(x, reset=torch.zeros(5, 2, dtype=torch.bool)), {"torch"}),
    "trace": (lambda layer, x: layer.trace(x), {"torch"}),
}
"""A call of each kind, and the backends that refuse it."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("make", [LSTM, lambda I, H, **o: Recurrent(cells.LSTM(), I, H, **o)])
def test_what_the_call_is_given(kind: str, dilation: int, make: Any) -> None:
    """What is told for a call of a kind is what happens to one: it is refused or it is not."""
    call, refusing = KINDS[kind]
    options = {} if make is LSTM else {"dilation": dilation}
    assert make(3, 4, **options).explain(5, 2, **{kind: True}) == "layer 0: cpu"
    for backend in ("cpu", "torch"):
        named, x = make(3, 4, backend=backend, **options), torch.randn(5, 2, 3)
        if backend not in refusing:
            assert named.explain(5, 2, **{kind: True}) == f"layer 0: {backend}"
            call(named, x)
        else:
            with pytest.raises(BackendError) as caught:
                call(named, x)
            told = f"layer 0: none, since {caught.value}"
            assert named.explain(5, 2, **{kind: True}) == told


def test_an_operation_without_a_rule_is_told_with_its_line() -> None:
    with warnings.catch_warnings():  # once a cell, and another test may have been the first
        warnings.simplefilter("ignore")
        text = Recurrent(Sorting(), 3, 4).explain()
    first, second, third = text.splitlines()
    assert first == "layer 0: reference"
    assert (
        "test_explain.py" in second
        and "return (torch.tanh(a.h + U.h @ s.h).sort(-1).values,)" in second
    )
    assert third == "  not torch: torch has no layer that equals Sorting"


def test_it_says_that_there_is_one_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LSTM(3, 4)
    assert layer.explain() == "layer 0: cpu"
    monkeypatch.setattr("throughtime.backends.runtime", lambda: None)
    said = "layer 0: cpu\n  on one thread, since torch's OpenMP runtime was not found"
    assert layer.explain() == said
