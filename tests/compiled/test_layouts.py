"""However a tensor lies in memory, and whichever gradients are there or asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.compiled.calls import (
    FLOATS,
    Sizes,
    assert_near,
    changed,
    check_call,
    expected,
    gradients,
    leaves,
    random_call,
    random_gradients,
    results,
)
from tests.compiled.fed import Phased
from tests.compiled.own import HandedOn, ThreeStates, Unlike
from throughtime import Cell, cells
from throughtime.backends.call import Call

CELLS: list[Cell] = [cells.LSTM(), cells.GRU(), ThreeStates(), HandedOn(), Unlike(), Phased()]
SIZES = Sizes(5, 3, 5, 17, 2)


def _strided(v: Tensor) -> Tensor:
    """Every second number of a wider tensor."""
    return torch.stack((v, torch.full_like(v, torch.nan)), -1).flatten(-2)[..., ::2]


def _transposed(v: Tensor) -> Tensor:
    """Rows and columns changed places in memory."""
    return v.transpose(0, -1).contiguous().transpose(0, -1)


def _offset(v: Tensor) -> Tensor:
    """One number behind where memory is aligned."""
    room = v.new_full((v.numel() + 1,), torch.nan)
    room[1:] = v.reshape(-1)
    return room[1:].view(v.shape)


def _batch_first(v: Tensor) -> Tensor:
    return v.transpose(0, 1).contiguous().transpose(0, 1) if v.dim() > 1 else v


def _expanded(v: Tensor) -> Tensor:
    """The first line of all, without memory for the others."""
    return v[:1].expand(v.shape)


def _inside(v: Tensor) -> Tensor:
    """The inner part of a wider tensor, in every dimension."""
    room = v.new_full([n + 2 for n in v.shape], torch.nan)
    inner = room[tuple(slice(1, n + 1) for n in v.shape)]
    return inner.copy_(v)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": _strided, "transposed": _transposed, "offset": _offset,
    "batch_first": _batch_first, "expanded": _expanded, "inside": _inside,
}  # fmt: skip

every_cell = pytest.mark.parametrize("cell", CELLS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def _laid_out(call: Call, layout: Callable[[Tensor], Tensor]) -> Call:
    """The call on leaves that lie otherwise in memory."""

    def lie(v: Tensor) -> Tensor:
        return layout(v.detach()).requires_grad_()

    return call._replace(
        x=lie(call.x),
        inputs=None if call.inputs is None else {n: lie(v) for n, v in call.inputs.items()},
        weights=tuple({n: lie(v) for n, v in w.items()} for w in call.weights),
        state=None if call.state is None else tuple(map(lie, call.state)),
        initial=None if call.initial is None else tuple(map(lie, call.initial)),
    )


@every_layout
@pytest.mark.parametrize("form", ["state", "initial", "lengths", "packed"])
@every_cell
def test_inputs_and_weights_may_lie_anyhow(
    cell: Cell, form: str, layout: Callable[[Tensor], Tensor]
) -> None:
    for dtype in FLOATS:
        check_call(_laid_out(random_call(cell, dtype, SIZES, form), layout))


@every_layout
@pytest.mark.parametrize("form", ["state", "lengths", "packed"])
@every_cell
def test_gradients_by_results_may_lie_anyhow(
    cell: Cell, form: str, layout: Callable[[Tensor], Tensor]
) -> None:
    call = random_call(cell, torch.float64, SIZES, form)
    d = random_gradients(results(call))
    check_call(call, {n: layout(v) for n, v in d.items() if v is not None})


@every_layout
def test_one_unit_and_one_input_may_lie_anyhow(layout: Callable[[Tensor], Tensor]) -> None:
    for sizes in (Sizes(3, 2, 1, 1, 2), Sizes(1, 1, 1, 1), Sizes(3, 1, 5, 1), Sizes(1, 4, 1, 3, 2)):
        call = _laid_out(random_call(cells.LSTM(), torch.float64, sizes, "state"), layout)
        d = random_gradients(results(call))
        check_call(call, {n: layout(v) for n, v in d.items() if v is not None})


@every_dtype
@every_cell
def test_a_gradient_may_reach_some_results_only(cell: Cell, dtype: torch.dtype) -> None:
    for form in ("plain", "state", "lengths"):
        call = random_call(cell, dtype, SIZES, form)
        d = random_gradients(results(call))
        for one in d:
            check_call(call, {n: v if n == one else None for n, v in d.items()})


@every_cell
def test_the_sum_of_outputs_has_an_expanded_gradient(cell: Cell) -> None:
    call = random_call(cell, torch.float64, SIZES, "state")
    results(call)["y"].sum().backward()
    ones = {n: torch.ones_like(v) if n == "y" else None for n, v in results(call).items()}
    by = leaves(call)
    found = {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in by.items()}
    assert_near(found, expected(call, ones)[1])


@every_cell
def test_a_gradient_may_be_asked_for_by_some_only(cell: Cell) -> None:
    for form in ("state", "initial", "packed"):
        whole = random_call(cell, torch.float64, SIZES, form)
        d = random_gradients(results(whole))
        wanted = expected(whole, d)[1]
        for one in leaves(whole):
            call = changed(whole, lambda v: v.detach().clone())
            by = {one: leaves(call)[one].requires_grad_()}
            assert_near(gradients(results(call), by, d), {one: wanted[one]})
