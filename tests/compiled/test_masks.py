"""Recurrent dropout and zoneout in compiled code: values, gradients and bits."""

from __future__ import annotations

import copy
from typing import Any

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
from tests.compiled.own import ThreeStates
from throughtime import Cell, Recurrent, cells
from throughtime.backends import choose
from throughtime.backends.call import Call
from throughtime.laws import TOLERANCE

pytestmark = pytest.mark.usefixtures("whole_teams")


def _call(cell: Cell, dtype: torch.dtype, sizes: Sizes) -> Call:
    return random_call(cell, dtype, sizes, "masked", grad=False)


def _part(call: Call, rows: Any, steps: slice = slice(None)) -> Call:
    """Some rows and steps of a padded call, with the masks that they have there."""
    mask = call.recurrent_mask
    return call._replace(
        x=call.x[steps, rows],
        inputs={n: v[steps, rows] for n, v in (call.inputs or {}).items()},
        state=tuple(v[:, rows] for v in call.state or ()),
        recurrent_mask=None if mask is None else mask[:, rows],
        zoneout=tuple(v[:, steps, rows] for v in call.zoneout or ()),
    )


def _of(values: dict[str, Tensor], rows: Any) -> list[Tensor]:
    return [v[:, rows] for v in values.values()]


@every_dtype
@every_cell
def test_value_and_gradients_equal_the_reference(cell: Cell, dtype: torch.dtype) -> None:
    """With both masks and with each alone; `test_values` meets more sizes."""
    for form, D in (("masked", 2), ("masked_reset", 1), ("masked_packed", 2)):
        check_call(random_call(cell, dtype, Sizes(5, 4, 3, 17, D), form))
    call = random_call(cell, dtype, Sizes(7, 3, 5, 37), "masked")
    check_call(call._replace(zoneout=None))
    check_call(call._replace(recurrent_mask=None))


@every_dtype
@every_cell
def test_outputs_and_gradients_have_their_bits_with_any_threads(
    cell: Cell, dtype: torch.dtype
) -> None:
    cases = {
        Sizes(5, 7, 5, 17, 2): "masked", Sizes(9, 1, 3, 64): "masked",
        Sizes(4, 13, 5, 37): "masked_reset", Sizes(12, 5, 3, 16, 2): "masked_packed",
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


@every_dtype
@every_cell
def test_a_row_has_its_bits_in_any_batch(cell: Cell, dtype: torch.dtype) -> None:
    for T, I, H, D in ((3, 5, 17, 2), (2, 33, 64, 1)):
        call = _call(cell, dtype, Sizes(T, 25, I, H, D))
        whole = results(call)
        for B in (1, 2, 5, 8, 13):
            rows = slice(B % 7, B % 7 + B)
            assert_same(list(results(_part(call, rows)).values()), _of(whole, rows), f"B={B}")
        order = torch.randperm(25).tolist()
        assert_same(list(results(_part(call, order)).values()), _of(whole, order), "shuffled")


@every_dtype
@every_cell
def test_padded_packed_and_alone_have_the_same_bits(cell: Cell, dtype: torch.dtype) -> None:
    lengths = torch.tensor([9, 7, 7, 4, 3, 1, 1])
    alive = torch.arange(9).unsqueeze(1) < lengths
    for I, H, D in ((5, 17, 2), (33, 64, 1)):
        full = _call(cell, dtype, Sizes(9, 7, I, H, D))
        padded = results(full._replace(lengths=lengths))
        inputs = {n: v[alive] for n, v in (full.inputs or {}).items()}
        rows = full._replace(x=full.x[alive], inputs=inputs, batch_sizes=alive.sum(1))
        packed = results(rows)
        assert_same([packed["y"]], [padded["y"][alive]], "packed outputs")
        assert_same(list(packed.values())[1:], list(padded.values())[1:], "packed states")
        order = torch.randperm(7)
        mixed = _part(full, order.tolist())._replace(lengths=lengths[order])
        assert_same(list(results(mixed).values()), _of(padded, order.tolist()), "shuffled")
        for row, n in enumerate(lengths.tolist()):
            alone = results(_part(full, [row], slice(n)))
            assert_same([padded["y"][:n, [row]]], [alone["y"]], f"outputs of row {row}")
            assert_same(_of(padded, [row])[1:], list(alone.values())[1:], f"states of row {row}")


@every_cell
def test_a_sequence_has_its_bits_however_it_is_cut(cell: Cell) -> None:
    call = _call(cell, torch.float32, Sizes(9, 3, 5, 17))
    whole = list(results(call).values())
    for cuts in ((3,), (0, 5), tuple(range(1, 9))):
        outputs, state = [], call.state
        for first, last in zip((0, *cuts), (*cuts, 9), strict=True):
            y, *final = results(_part(call, slice(None), slice(first, last))._replace(
                state=state)).values()  # fmt: skip
            outputs.append(y)
            state = tuple(final)
        assert state is not None
        assert_same([torch.cat(outputs), *state], whole, f"cut at {cuts}")


@every_cell
def test_masks_that_mask_nothing_are_as_none(cell: Cell) -> None:
    call = random_call(cell, torch.float64, Sizes(5, 3, 4, 17, 2), "masked")
    assert call.recurrent_mask is not None and call.zoneout is not None
    empty = call._replace(
        recurrent_mask=torch.ones_like(call.recurrent_mask),
        zoneout=tuple(torch.zeros_like(v) for v in call.zoneout),
    )
    plain = call._replace(recurrent_mask=None, zoneout=None)
    d = random_gradients(results(plain))
    found, wanted = (
        [*results(c).values(), *gradients(results(c), leaves(c), d).values()]
        for c in (empty, plain)
    )
    near = TOLERANCE[torch.float64]
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)


@every_cell
def test_units_that_zoneout_keeps_stay_as_they_are(cell: Cell) -> None:
    call = _call(cell, torch.float32, Sizes(6, 3, 4, 17, 2))
    assert call.zoneout is not None and call.state is not None
    all_kept = call._replace(zoneout=tuple(torch.ones_like(v) for v in call.zoneout))
    y, *final = results(all_kept).values()
    assert_same(final, call.state)
    assert_same([y], [call.state[0].movedim(1, 0).expand_as(y)])


@pytest.mark.parametrize("form", ["masked", "masked_reset", "masked_packed"])
@every_cell
def test_masks_are_replayed(cell: Cell, form: str) -> None:
    """A second backward has the bits of the first, and no gradient changes those of the value."""
    call = random_call(cell, torch.float32, Sizes(5, 4, 3, 17, 2), form)
    found = results(call)
    d = random_gradients(found)
    first, again = (gradients(found, leaves(call), d, retain_graph=True) for _ in range(2))
    assert_same(list(again.values()), list(first.values()))
    with torch.no_grad():
        assert_same(list(results(call).values()), list(found.values()))


def test_masks_behind_an_end_are_not_looked_at() -> None:
    lengths = torch.tensor([2, 0, 5, 3])
    call = _call(ThreeStates(), torch.float32, Sizes(5, 4, 3, 5, 2))._replace(lengths=lengths)
    assert call.zoneout is not None
    behind = torch.arange(5).unsqueeze(1) >= lengths
    masks = (v.to(call.x.dtype) for v in call.zoneout)
    zones = tuple(v.masked_fill(behind.unsqueeze(-1), torch.nan) for v in masks)
    assert_same(list(results(call._replace(zoneout=zones)).values()), list(results(call).values()))


def test_masks_of_any_strides() -> None:
    call = _call(cells.LSTM(), torch.float32, Sizes(5, 4, 3, 16, 2))
    assert call.recurrent_mask is not None and call.zoneout is not None
    turned = call._replace(
        recurrent_mask=call.recurrent_mask.mT.contiguous().mT,
        zoneout=tuple(v.transpose(1, 3).contiguous().transpose(1, 3) for v in call.zoneout),
    )
    assert_same(list(results(turned).values()), list(results(call).values()))


OPTIONS: dict[str, dict[str, Any]] = {
    "both": {"bidirectional": True, "recurrent_dropout": 0.4, "zoneout": 0.3},
    "stack": {"num_layers": 2, "recurrent_dropout": 0.4, "zoneout": {"h": 0.3}, "dropout": 0.2},
    "dilated": {"recurrent_dropout": 0.4, "zoneout": 0.3, "dilation": 2},
    "segments": {"recurrent_dropout": 0.4, "zoneout": 0.3, "checkpoint_every": 2},
    "all": {"recurrent_dropout": 1.0, "zoneout": 1.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU(), cells.GRUResetBefore()], ids=repr)
def test_a_layer_trains_as_the_reference_does(cell: Cell, options: dict[str, Any]) -> None:
    layer = Recurrent(cell, 3, 5, dtype=torch.float64, backend="cpu", **options)
    plain = copy.deepcopy(layer)
    plain.backend = "reference"
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    for given in ({}, {"lengths": torch.tensor([7, 0, 3, 5])}):
        found = []
        for one in (layer, plain):
            torch.manual_seed(3)
            y, state = one(x, **given)
            total = y.square().sum() + sum(v.sin().sum() for part in state for v in part)
            grads = torch.autograd.grad(total, list(one.parameters()), materialize_grads=True)
            found.append([y, *(v for part in state for v in part), *grads])
        near = TOLERANCE[torch.float64]
        torch.testing.assert_close(found[0], found[1], rtol=near, atol=near)


def test_auto_takes_masks() -> None:
    call = random_call(cells.LSTM(), torch.float32, Sizes(6, 3, 3, 5), "masked")
    assert choose(call).name == "cpu"
