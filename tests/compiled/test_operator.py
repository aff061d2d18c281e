"""torch's own checks of the raw operators, on compiled code."""

from __future__ import annotations

import pytest
import torch

from tests.compiled.calls import FORMS, Sizes, assert_same, gradients, leaves, random_call, results
from tests.compiled.own import Apart, ThreeStates
from throughtime import Cell, cells
from throughtime.scan import call_operator
from throughtime.scan.operator import flatten

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor")
every_form = pytest.mark.parametrize("form", FORMS)
every_cell = pytest.mark.parametrize("cell", [cells.LSTM(), ThreeStates(), Apart()], ids=repr)


# A packed batch says in its numbers how many rows there are, which no fake tensor knows.
@pytest.mark.parametrize("form", [form for form in FORMS if "packed" not in form])
@every_cell
def test_the_raw_ops_pass_opcheck(cell: Cell, form: str) -> None:
    for sizes in (Sizes(4, 3, 2, 5, 2), Sizes(33, 17, 2, 50, 2)):
        call = random_call(cell, torch.float64, sizes, form, grad=False)
        shape, tensors = flatten(call)
        args = (cell.key, "cpu", list(shape), True, tensors)
        op = torch.ops.throughtime.scan_forward.default
        torch.library.opcheck(op, args, test_utils=UTILITIES)
        found = op(*args)
        count = len(results(call))
        needs = [v is not None and v.is_floating_point() for v in tensors]
        d = [torch.randn_like(v) for v in found[:count]]
        given = (cell.key, "cpu", list(shape), needs, tensors, found[count:], d)
        torch.library.opcheck(
            torch.ops.throughtime.scan_backward.default, given, test_utils=UTILITIES
        )


@every_form
@every_cell
def test_the_operator_has_the_bits_of_the_direct_way(cell: Cell, form: str) -> None:
    call = random_call(cell, torch.float32, Sizes(4, 3, 2, 17, 2), form)
    found = call_operator(call, "cpu")
    values = {str(i): v for i, v in enumerate([*found.sequences, *found.final])}
    direct = results(call)
    assert_same(list(values.values()), list(direct.values()))
    d = [torch.randn_like(v) for v in values.values()]
    grads = [
        gradients(v, leaves(call), dict(zip(v, d, strict=True))) for v in (values, direct)
    ]  # fmt: skip
    assert_same(list(grads[0].values()), list(grads[1].values()))


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@every_form
def test_gradients_where_forward_kept_nothing(form: str, backend: str) -> None:
    """As in a graph of both passes that torch.export writes."""
    call = random_call(cells.LSTM(), torch.float64, Sizes(4, 3, 2, 5, 2), form, grad=False)
    shape, tensors = flatten(call)
    needs = [v is not None and v.is_floating_point() for v in tensors]
    found = torch.ops.throughtime.scan_forward(call.cell.key, backend, list(shape), True, tensors)
    count = len(results(call))
    d = [torch.randn_like(v) for v in found[:count]]
    ways = [
        torch.ops.throughtime.scan_backward(
            call.cell.key, backend, list(shape), needs, tensors, kept, d
        )
        for kept in (found[count:], [])
    ]
    assert_same(*ways)


def test_results_alias_nothing() -> None:
    call = random_call(cells.LSTM(), torch.float32, Sizes(0, 3, 2, 5), "state", grad=False)
    assert call.state is not None
    found = results(call)
    for v, start in zip(list(found.values())[1:], call.state, strict=True):
        assert torch.equal(v, start)
        assert v.untyped_storage().data_ptr() != start.untyped_storage().data_ptr()
    alone = call._replace(x=torch.zeros(2, 3, 2))
    y, h, _ = results(alone).values()
    assert torch.equal(y[-1, :, 0], h[0]) and y.data_ptr() != h.data_ptr()
