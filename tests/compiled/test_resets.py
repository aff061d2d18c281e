"""A reset is two sequences, bit for bit: the state before it reaches nothing behind it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.compiled.calls import (
    Sizes,
    assert_same,
    check_call,
    every_cell,
    every_dtype,
    gradients,
    leaves,
    random_call,
    random_gradients,
    results,
)
from throughtime import Cell, cells
from throughtime.backends import choose
from throughtime.backends.call import Call

pytestmark = pytest.mark.usefixtures("whole_teams")


def _pair(call: Call, row: int, t: int) -> list[Tensor]:
    """Outputs and final states of one row's two sequences, each direction begun where it begins."""
    assert call.state is not None
    state, initial = (tuple(v[:, [row]] for v in s) for s in (call.state, call.initial_rows()))
    first = tuple(torch.stack((s[0], i[1])) for s, i in zip(state, initial, strict=True))
    second = tuple(torch.stack((i[0], s[1])) for s, i in zip(state, initial, strict=True))
    plain = call._replace(reset=None, initial=None)
    before, after = (
        list(results(_steps(plain, row, steps)._replace(state=start)).values())
        for steps, start in ((slice(t), first), (slice(t, None), second))
    )
    finals = [torch.stack((b[0], a[1])) for a, b in zip(before[1:], after[1:], strict=True)]
    return [torch.cat((before[0], after[0])), *finals]


def _steps(call: Call, row: int, steps: slice) -> Call:
    """What one row is given in some steps."""
    inputs = {n: v[steps, [row]] for n, v in (call.inputs or {}).items()}
    return call._replace(x=call.x[steps, [row]], inputs=inputs)


@every_dtype
@every_cell
def test_a_reset_is_two_sequences(cell: Cell, dtype: torch.dtype) -> None:
    at = torch.tensor([1, 4, 8, 3, 1, 6, 2])
    for form, I, H, B in (("reset_state", 5, 17, 7), ("reset_both", 33, 64, 2)):
        call = random_call(cell, dtype, Sizes(9, B, I, H, 2), form, grad=False)
        call = call._replace(reset=torch.arange(9).unsqueeze(1) == at[:B])
        pairs = [_pair(call, row, int(at[row])) for row in range(B)]
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            for row, pair in enumerate(pairs):
                assert_same([v[:, [row]] for v in results(call).values()], pair, f"row {row}")


@every_dtype
@every_cell
def test_resets_have_their_bits_with_any_threads(cell: Cell, dtype: torch.dtype) -> None:
    cases = {
        Sizes(7, 3, 5, 64, 2): "reset_both", Sizes(9, 1, 5, 100): "reset_state",
        Sizes(5, 7, 3, 17, 2): "reset_lengths", Sizes(12, 5, 3, 17): "reset_packed",
    }  # fmt: skip
    for sizes, form in cases.items():
        call = random_call(cell, dtype, sizes, form)
        d = random_gradients(results(call))
        wanted: list[Tensor] = []
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            found = results(call)
            grads = gradients(found, leaves(call), d)
            wanted = wanted or [*found.values(), *grads.values()]
            assert_same([*found.values(), *grads.values()], wanted, f"{number} threads, {form}")


@every_cell
def test_a_reset_that_never_is_and_one_behind_an_end_change_nothing(cell: Cell) -> None:
    call = random_call(cell, torch.float32, Sizes(6, 4, 3, 17, 2), "state", grad=False)
    call = call._replace(lengths=torch.tensor([6, 0, 3, 4]))
    behind = torch.arange(6).unsqueeze(1) >= torch.tensor([6, 0, 3, 4])
    wanted = list(results(call).values())
    for reset in (torch.zeros(6, 4, dtype=torch.bool), behind):
        assert_same(list(results(call._replace(reset=reset)).values()), wanted)


@every_cell
def test_no_gradient_crosses_a_reset(cell: Cell) -> None:
    call = random_call(cell, torch.float64, Sizes(6, 3, 3, 5, 2), "reset_both")
    call = call._replace(reset=(torch.arange(6) == 4).unsqueeze(1).expand(6, 3))
    y = results(call)["y"]
    (before,) = torch.autograd.grad(y[:4].sum(), [call.x], retain_graph=True)
    (behind,) = torch.autograd.grad(y[4:].sum(), [call.x])
    assert not before[4:].any() and not behind[:4].any()
    check_call(call)


def test_auto_takes_resets() -> None:
    call = random_call(cells.LSTM(), torch.float32, Sizes(6, 3, 3, 5), "reset")
    assert choose(call).name == "cpu"
