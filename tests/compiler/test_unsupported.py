"""An operation without a rule is no error: it is a reason, with its line, for the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from throughtime import cells
from throughtime.cells import Cell
from throughtime.compiler import derivative, trace
from throughtime.errors import CellError


class Surrogate(torch.autograd.Function):
    """A step function with a derivative of its own, as spiking networks use it."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, d: Any) -> Any:
        return d / (1 + ctx.saved_tensors[0].abs())


class Wrapped(torch.autograd.Function):
    """One whose `forward` is wrapped by torch."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2


class Apart(torch.autograd.Function):
    """One whose context is set up apart."""

    @staticmethod
    def forward(x: Any) -> Any:
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, d: Any) -> Any:
        return d


def without_gradient(x: Any) -> Any:
    with torch.no_grad():
        y = x * 2
    return x * y


def halves(x: Any) -> Any:
    left, right = torch.chunk(x, 2, -1)
    return torch.cat([right, left], -1)


KEPT = torch.linspace(0, 1, 4)
LEARNED = torch.nn.Parameter(torch.tensor(2.0))

CALLS = itertools.count()

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "no rule": (torch.lgamma, ["lgamma"]),
    "method": (lambda x: x.erfinv() + x.lgamma(), ["erfinv", "lgamma"]),
    "option": (lambda x: F.gelu(x, approximate="tanh"), ["gelu"]),
    "exponent": (lambda x: 2.0**x, ["rpow"]),
    "tensor bounds": (lambda x: torch.clamp(x, -x, x), ["clamp"]),
    "whole numbers": (lambda x: x * ((x > 0) + (x > 1)), ["add"]),
    "not exact": (lambda x: x + torch.where(x > 0, 0.1, 0.2), ["where"]),
    "max over units": (lambda x: x - x.max(-1, True).values, ["max"]),
    "max over a number": (lambda x: x - x.max(1)[0][:, None], ["max", "getitem"]),
    "sum over rows": (lambda x: x - x.sum(0, keepdim=True), ["sum"]),
    "halves": (halves, ["chunk", "cat"]),
    "index": (lambda x: x.flip(-1)[:, :], ["flip", "getitem"]),
    "random": (torch.rand_like, ["rand_like"]),
    "dropout": (lambda x: F.dropout(x, 0.5), ["dropout"]),
    "random number": (lambda x: x * torch.rand(()), ["a number that changes from call to call"]),
    "count": (lambda x: x + 2 * next(CALLS), ["a number that changes from call to call"]),
    "no_grad": (without_gradient, ["an operation under no_grad"]),
    "own derivative": (Surrogate.apply, ["a torch.autograd.Function"]),
    "wrapped": (Wrapped.apply, ["a torch.autograd.Function"]),
    "set up apart": (Apart.apply, ["a torch.autograd.Function"]),
    "data": (lambda x: x * x.data, ["Tensor.data"]),
    "dtype": (lambda x: x.to(x.dtype), ["Tensor.dtype", "to"]),
    "device": (lambda x: x if x.device.type == "cpu" else -x, ["Tensor.device"]),
    "rows": (lambda x: x / x.shape[0], ["the number of rows"]),
    "kept tensor": (lambda x: x * KEPT.mean() + KEPT[:1], ["a tensor of shape (1) that"]),
    "learned number": (lambda x: x * LEARNED, ["a tensor of shape () that"]),
    "outside": (lambda x: torch.vmap(torch.sin)(x), ["what raised ValueError"]),
}


class Sliced(Cell):
    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (a.h + U.h @ s.h[:, :3],)


def cell_of(function: Callable[[Any], Any]) -> Cell:
    return cells.Elman(function)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_reason_has_its_line(name: str) -> None:
    function, reasons = FUNCTIONS[name]
    graph = trace(cell_of(function))
    assert len(graph.unsupported) == len(reasons), graph.unsupported
    for (operation, line), reason in zip(graph.unsupported, reasons, strict=True):
        assert operation.startswith(reason)
        assert line.file.endswith(("test_unsupported.py", "elman.py", "function.py"))
        assert line.text
    assert [n for n, _ in graph.outputs] == ["h"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_derivative_is_made_up(name: str) -> None:
    with pytest.raises(CellError, match=r"(?s)Elman has no derivative here: no rule for .+\n  at "):
        derivative(trace(cell_of(FUNCTIONS[name][0])))


def test_the_line_is_the_very_one() -> None:
    (operation, line), *_ = trace(cell_of(without_gradient)).unsupported
    assert line.text == "y = x * 2"
    assert str(line) == f"{__file__}:{line.number}: y = x * 2"


def test_what_does_not_reach_the_state_is_no_reason() -> None:
    def looks(x: Any) -> Any:
        torch.lgamma(x)
        return torch.tanh(x)

    assert trace(cell_of(looks)).unsupported == ()
    assert trace(cell_of(looks)).key == trace(cells.Elman()).key


def test_widths_behind_an_unknown_operation_are_not_judged() -> None:
    graph = trace(cell_of(lambda x: x + x[:, :3]))
    assert "add needs values of one width" in graph.unsupported[0].operation
    graph = trace(Sliced())
    assert "U.h multiplies a vector of shape" in graph.unsupported[0].operation


def test_tracing_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for function in (torch.rand_like, lambda x: x * torch.rand(())):
        trace(cell_of(function))
    assert torch.equal(torch.rand(2), expected)


def test_tracing_does_not_depend_on_the_grad_mode() -> None:
    with torch.no_grad():
        graph = trace(cells.LSTM())
    assert graph.unsupported == ()
    with torch.inference_mode():
        assert derivative(trace(cells.LSTM())).key == derivative(graph).key
