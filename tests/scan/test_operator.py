"""The operator under autograd: value, gradient, its gradient, and torch's own checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.scan.calls import FORMS, leaves, make_call
from throughtime import Cell, cells
from throughtime.backends.call import Call, Result
from throughtime.errors import BackendError, CellError, OptionError
from throughtime.scan import call_operator, scan
from throughtime.scan.autograd import Scan
from throughtime.scan.operator import flatten, unflatten

CASES = [(cells.LSTM(), form) for form in FORMS] + [
    (cells.LSTMPeephole(), "ragged"), (cells.LSTMProjected(2), "masked"), (cells.GRU(), "state"),
    (cells.IndRNN(), "plain"), (cells.Skip(2), "ragged"),
]  # fmt: skip
every_case = pytest.mark.parametrize(("cell", "form"), CASES, ids=lambda v: str(v))


WAYS = ("forward", "backward")
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")


def _all(result: Result) -> list[Tensor]:
    return [*result.sequences, *result.final]


@every_case
def test_the_operator_equals_the_plain_loop_and_its_gradient(cell: Cell, form: str) -> None:
    call = make_call(cell, form)
    plain, through = _all(scan(call, "reference")), _all(call_operator(call, "reference"))
    assert_close(through, plain, rtol=0, atol=0)
    d = [torch.randn_like(v) for v in plain]
    expected = torch.autograd.grad(plain, leaves(call), d, materialize_grads=True)
    found = torch.autograd.grad(through, leaves(call), d, materialize_grads=True)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_case
def test_gradient_and_its_gradient_by_finite_differences(cell: Cell, form: str) -> None:
    call = make_call(cell, form, T=3, B=2, I=1, H=2, D=1)
    shape, tensors = flatten(call)
    asks = [i for i, v in enumerate(tensors) if v is not None and v.requires_grad]

    def results(*values: Tensor) -> Any:
        given = list(tensors)
        for i, v in zip(asks, values, strict=True):
            given[i] = v
        return Scan.apply(cell.key, "reference", tuple(shape), True, *given)

    inputs = [tensors[i] for i in asks]
    assert torch.autograd.gradcheck(results, inputs)
    assert torch.autograd.gradgradcheck(results, inputs, fast_mode=True)


@every_case
def test_a_call_survives_its_flat_form(cell: Cell, form: str) -> None:
    call = make_call(cell, form)
    shape, tensors = flatten(call)
    back = unflatten(cell, list(shape), tensors)
    again_shape, again = flatten(back)
    assert again_shape == shape
    assert all(a is b for a, b in zip(again, tensors, strict=True))
    assert_close(_all(scan(back, "reference")), _all(scan(call, "reference")), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("backend", "form"),
    [*(("reference", f) for f in FORMS), *(("cpu", f) for f in ("plain", "state", "zoned"))],
)
def test_the_raw_ops_pass_opcheck(backend: str, form: str) -> None:
    call = make_call(form=form, grad=False)
    shape, tensors = flatten(call)
    forward, backward = (getattr(torch.ops.throughtime, f"scan_{n}").default for n in WAYS)
    for keep in (False, True):
        args = (call.cell.key, backend, list(shape), keep, tensors)
        torch.library.opcheck(forward, args, test_utils=UTILITIES)
    found = forward(*args)
    results, kept = found[: shape.results], found[shape.results :]
    assert bool(kept) is (backend == "cpu")
    needs = [v is not None and v.is_floating_point() for v in tensors]
    d = [torch.randn_like(v) for v in results]
    args = (call.cell.key, backend, list(shape), needs, tensors, kept, d)
    torch.library.opcheck(backward, args, test_utils=UTILITIES)


def test_autocast_has_no_say_inside_an_operator() -> None:
    """The compiler asks a fake under autocast and runs the op without: both choose the same."""
    call = make_call(grad=False)
    shape, tensors = flatten(call)
    args = (call.cell.key, "auto", list(shape), True, tensors)
    expected = torch.ops.throughtime.scan_forward(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.ops.throughtime.scan_forward(*args)
        torch.library.opcheck(torch.ops.throughtime.scan_forward.default, args,
                              test_utils=("test_faketensor",))  # fmt: skip
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["plain", "state", "ragged"])
@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU(), cells.Elman("relu")], ids=repr)
def test_torchs_kernel_equals_the_reference(cell: Cell, form: str) -> None:
    call = make_call(cell, form)
    if form == "ragged":
        with pytest.raises(BackendError, match="cannot run this call: torch's layer does not off"):
            scan(call, "torch")
        return
    expected, found = _all(scan(call, "reference")), _all(scan(call, "torch"))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    d = [torch.randn_like(v) for v in expected]
    assert_close(
        torch.autograd.grad(found, leaves(call), d),
        torch.autograd.grad(expected, leaves(call), d),
        rtol=1e-12,
        atol=1e-12,
    )


def test_two_backward_passes_through_one_graph_agree() -> None:
    call = make_call()
    y = call_operator(call).sequences[0].square().sum()
    first = torch.autograd.grad(y, leaves(call), retain_graph=True)
    assert_close(torch.autograd.grad(y, leaves(call)), first, rtol=0, atol=0)


def test_results_alias_neither_each_other_nor_the_arguments() -> None:
    call: Call = make_call(form="state", T=0, grad=False)
    assert call.state is not None
    found = _all(call_operator(call))
    pointers = [v.untyped_storage().data_ptr() for v in found if v.numel()]
    given = [v.untyped_storage().data_ptr() for v in call.state]
    assert len({*pointers, *given}) == len(pointers) + len(given)
    assert_close(tuple(found[1:]), call.state)


def test_unknown_backend_and_unknown_cell_are_told() -> None:
    call = make_call()
    with pytest.raises(OptionError, match="must be one of auto, cpu, torch, reference, got 'gpu'"):
        scan(call, "gpu")
    form, tensors = flatten(call)
    with pytest.raises(CellError, match="the cell other.Cell.. is not known in this process"):
        torch.ops.throughtime.scan_forward("other.Cell()", "auto", list(form), False, tensors)
