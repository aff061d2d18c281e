"""A row's bits do not depend on the batch around it, the threads, or how time and rows are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compiled.calls import (
    CELLS,
    Sizes,
    assert_same,
    changed,
    every_cell,
    every_dtype,
    gradients,
    leaves,
    random_call,
    random_gradients,
    results,
)
from throughtime import Cell, cells
from throughtime.backends.call import Call
from throughtime.backends.cpu import backward_pass
from throughtime.backends.cpu import schedule as cutting
from throughtime.backends.cpu.block import Template
from throughtime.backends.cpu.schedule import Team
from throughtime.backends.cpu.shape import Shape
from throughtime.compiler.plan import make_plan

pytestmark = pytest.mark.usefixtures("whole_teams")


def _call(cell: Cell, dtype: torch.dtype, sizes: Sizes, form: str = "state") -> Call:
    return random_call(cell, dtype, sizes, form, grad=False)


def _rows(call: Call, rows: slice | list[int], steps: slice = slice(None)) -> Call:
    """Some rows and steps of a padded call, with the lengths they have there."""
    assert call.state is not None
    call = _fed(call, (steps, rows))
    return call._replace(state=tuple(v[:, rows] for v in call.state or ()), lengths=None)


def _fed(call: Call, part: Any) -> Call:
    """The call with a part of its input, and the same part of its direct inputs."""
    inputs = None if call.inputs is None else {n: v[part] for n, v in call.inputs.items()}
    return call._replace(x=call.x[part], inputs=inputs)


def _of(values: dict[str, Tensor], rows: slice | list[int]) -> list[Tensor]:
    return [v[:, rows] for v in values.values()]


def test_these_teams_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, caller = [], Template.caller

    def seen(template: Template, region: int, team: Team) -> Callable[[int], None]:
        asked.append(team.threads)
        return caller(template, region, team)

    monkeypatch.setattr(Template, "caller", seen)
    small = random_call(CELLS[0], torch.float32, Sizes(1, 1, 1, 1))
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        results(small)["y"].sum().backward()
    assert asked == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("H", "B", "forward", "backward"),
    [
        (512, 1, (1, 4), (1, 4)), (512, 16, (1, 4), (1, 4)), (512, 40, (2, 2), (2, 2)),
        (100, 1, (1, 4), (1, 4)), (100, 5, (1, 4), (2, 2)), (100, 7, (2, 2), (3, 1)),
        (100, 16, (4, 1), (4, 1)),
    ],
)  # fmt: skip
def test_few_rows_share_what_a_step_reads(
    H: int, B: int, forward: tuple[int, int], backward: tuple[int, int]
) -> None:
    call = _call(cells.LSTM(), torch.float32, Sizes(3, B, 5, H))
    torch.set_num_threads(4)
    of = make_plan(call.cell), call, 3 * B, B
    teams = cutting.forward_team(*of), cutting.backward_team(*of)
    assert [(team.chunks, team.members) for team in teams] == [forward, backward]


@every_dtype
@every_cell
def test_a_row_has_its_bits_in_any_batch(cell: Cell, dtype: torch.dtype) -> None:
    for T, I, H, D in ((3, 5, 17, 2), (2, 1, 64, 1), (3, 33, 3, 1), (1, 5, 130, 1)):
        call = _call(cell, dtype, Sizes(T, 40, I, H, D))
        whole = results(call)
        for B in (1, 2, 3, 5, 7, 8, 11, 12, 13, 17, 25):
            for first in {0, 40 - B, B % 7}:
                rows = slice(first, first + B)
                assert_same(list(results(_rows(call, rows)).values()), _of(whole, rows), f"B={B}")
        order = torch.randperm(40).tolist()
        assert_same(list(results(_rows(call, order)).values()), _of(whole, order), "shuffled")


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "alone"])
@every_dtype
@every_cell
def test_outputs_and_gradients_have_their_bits_with_any_threads(
    cell: Cell, dtype: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARED_BYTES", 0 if shared else 1 << 60)
    monkeypatch.setattr(cutting, "FAR_BYTES", 0)  # 13 and 17 rows are two chunks, each of two
    monkeypatch.setattr(cutting, "FAR_ROWS", 6)
    cases = {
        Sizes(5, 7, 5, 17, 2): "state", Sizes(9, 3, 1, 64): "plain",
        Sizes(3, 1, 33, 100, 2): "initial", Sizes(4, 13, 5, 37): "lengths",
        Sizes(40, 17, 5, 16): "packed", Sizes(2, 2, 3, 1): "no_bias",
        Sizes(1, 6, 19, 33): "plain", Sizes(1, 1, 33, 70, 2): "state",
        Sizes(1, 23, 19, 33): "plain",
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
def test_gradients_have_their_bits_however_steps_are_blocked(
    cell: Cell, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight gradient is one chain over the rows of all steps, of few blocks as of many."""
    monkeypatch.setattr(backward_pass, "template_for", backward_pass.template_for.__wrapped__)
    cases = {
        Sizes(40, 3, 5, 17): "state", Sizes(40, 7, 3, 8): "lengths", Sizes(7, 3, 70, 50): "plain",
        Sizes(5, 1, 51, 67, 2): "state",
    }  # fmt: skip
    for sizes, form in cases.items():
        call, wanted = random_call(cell, dtype, sizes, form), []
        d = random_gradients(results(call))
        for least in (1, 128):
            monkeypatch.setattr(cutting, "CACHED_BYTES", least)
            monkeypatch.setattr(backward_pass, "LEAST_ROWS", least)
            wanted.append(list(gradients(results(call), leaves(call), d).values()))
        assert_same(wanted[0], wanted[1], form)


@every_dtype
@every_cell
def test_gradients_of_one_step_have_their_bits_packed_and_in_place(
    cell: Cell, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    lies = backward_pass.lies_backward
    monkeypatch.setattr(backward_pass, "template_for", backward_pass.template_for.__wrapped__)
    cases = {
        Sizes(1, 1, 150, 130, 2): "state", Sizes(1, 1, 128, 7): "plain",
        Sizes(1, 2, 64, 32): "plain", Sizes(1, 13, 67, 70): "state",
        Sizes(1, 64, 33, 65, 2): "no_bias", Sizes(1, 3, 67, 66): "masked",
    }  # fmt: skip
    for sizes, form in cases.items():
        call, wanted = random_call(cell, dtype, sizes, form), []
        d = random_gradients(results(call))
        for number, way in ((1, _packed_back), (1, lies), (2, lies)):
            monkeypatch.setattr(backward_pass, "lies_backward", way)
            torch.set_num_threads(number)
            found = gradients(results(call), leaves(call), d)
            wanted = wanted or list(found.values())
            assert_same(list(found.values()), wanted, f"{number} threads, {sizes}")


def _packed_back(shape: Shape) -> dict[str, int]:
    return {"W_lies": 0, "U_lies": 0}


def test_a_large_step_multiplies_by_both_matrices_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    lies, found = backward_pass.lies_backward, []

    def seen(shape: Shape) -> dict[str, int]:
        found.append(lies(shape))
        return found[-1]

    monkeypatch.setattr(backward_pass, "template_for", backward_pass.template_for.__wrapped__)
    monkeypatch.setattr(backward_pass, "lies_backward", seen)
    for cell in (cells.LSTM(), cells.GRU()):
        call = random_call(cell, torch.float32, Sizes(1, 3, 150, 151))
        sum(v.sum() for v in results(call).values()).backward()
    assert found and all(all(words.values()) for words in found)


STEPPED = (cells.Elman(), cells.GRU(), cells.LSTM(), cells.LSTMPeephole(), cells.LSTMProjected(7))


@every_dtype
@pytest.mark.parametrize("cell", STEPPED, ids=repr)
def test_gradients_of_one_step_have_their_bits_with_any_threads(
    cell: Cell, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads share the columns of both matrices, of which the last panel begins in another's."""
    monkeypatch.setattr(cutting, "FAR_BYTES", 0)
    monkeypatch.setattr(cutting, "FAR_ROWS", 100)  # all threads are members of one chunk
    cases = {
        Sizes(1, 1, 33, 70): "state", Sizes(1, 1, 101, 129): "plain", Sizes(1, 3, 70, 33): "state",
        Sizes(1, 8, 17, 23): "plain", Sizes(1, 16, 5, 100): "state", Sizes(1, 40, 67, 65): "state",
        Sizes(1, 3, 19, 37, 2): "reset_state", Sizes(1, 5, 40, 37): "masked_reset",
        Sizes(1, 7, 37, 40): "record", Sizes(1, 4, 21, 65): "reset_both",
    }  # fmt: skip
    for sizes, form in cases.items():
        call, wanted = random_call(cell, dtype, sizes, form), dict[str, Tensor]()
        d = random_gradients(results(call))
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            for left_out in ((), ("x",), tuple(n for n in leaves(call) if n.startswith("state"))):
                by = {n: v for n, v in leaves(call).items() if n not in left_out}
                found = gradients(_without(call, left_out), by, d)
                wanted = wanted or found
                assert_same(list(found.values()), [wanted[n] for n in by], f"{number}, {sizes}")


@pytest.mark.parametrize(
    ("sizes", "apart"),
    [
        (Sizes(1, 3, 150, 151), 4), (Sizes(1, 1, 150, 151), 4), (Sizes(2, 3, 150, 151), 1),
        (Sizes(1, 129, 150, 151), 1), (Sizes(1, 3, 3, 151), 1), (Sizes(1, 3, 150, 151, 2), 1),
    ],
)  # fmt: skip
def test_threads_of_a_large_step_never_meet(
    sizes: Sizes, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two directions, of more rows and steps, and where a matrix is packed, they do."""
    asked, found = backward_pass.threads_apart, []

    def seen(*of: Any) -> int:
        found.append(asked(*of))
        return found[-1]

    monkeypatch.setattr(backward_pass, "template_for", backward_pass.template_for.__wrapped__)
    monkeypatch.setattr(backward_pass, "threads_apart", seen)
    torch.set_num_threads(4)
    call = random_call(cells.LSTM(), torch.float32, sizes)
    sum(v.sum() for v in results(call).values()).backward()
    assert found == [apart]


def _without(call: Call, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Results of the call, which some of its leaves want no gradient of."""
    x = call.x.detach() if "x" in names else call.x
    start = call.state and tuple(
        v.detach() if f"state {n}" in names else v
        for n, v in zip(call.cell.state_names, call.state, strict=True)
    )
    return results(call._replace(x=x, state=start))


def test_a_chunk_of_many_short_rows_has_its_bits() -> None:
    """Chunks have equal work, so one long row beside many short ones makes them unequal."""
    call = _call(cells.LSTM(), torch.float32, Sizes(100, 101, 256, 256))
    call = call._replace(lengths=torch.tensor([100] + [1] * 100))
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(list(results(call).values()))
    assert_same(found[1], found[0])


@every_dtype
@every_cell
def test_a_sequence_has_its_bits_however_it_is_cut(cell: Cell, dtype: torch.dtype) -> None:
    for B, I, H in ((3, 5, 17), (1, 1, 64), (7, 33, 3)):
        call = _call(cell, dtype, Sizes(9, B, I, H))
        whole = list(results(call).values())
        for cuts in ((3,), (1, 2, 8), (0, 5), tuple(range(1, 9))):
            assert_same(_in_parts(call, cuts), whole, f"cut at {cuts}")


def _in_parts(call: Call, cuts: tuple[int, ...]) -> list[Tensor]:
    """Outputs and final states of the parts one after the other, the state handed on."""
    ends, outputs, state = (*cuts, call.x.shape[0]), [], call.state
    for first, last in zip((0, *cuts), ends, strict=True):
        y, *final = results(_fed(call, slice(first, last))._replace(state=state)).values()
        outputs.append(y)
        state = tuple(final)
    assert state is not None
    return [torch.cat(outputs), *state]


@every_dtype
@every_cell
def test_padded_packed_and_alone_have_the_same_bits(cell: Cell, dtype: torch.dtype) -> None:
    lengths = torch.tensor([9, 7, 7, 4, 3, 1, 1])
    for I, H, D in ((5, 17, 2), (1, 64, 1), (33, 3, 2)):
        full = _call(cell, dtype, Sizes(9, 7, I, H, D))
        shuffled = torch.randperm(7)
        padded = results(full._replace(lengths=lengths))
        alive = torch.arange(9).unsqueeze(1) < lengths
        packed = results(_fed(full, alive)._replace(batch_sizes=alive.sum(1)))
        assert_same([packed["y"]], [padded["y"][alive]], "packed outputs")
        assert_same(list(packed.values())[1:], list(padded.values())[1:], "packed states")
        mixed = _rows(full, shuffled.tolist())._replace(lengths=lengths[shuffled])
        assert_same(list(results(mixed).values()), _of(padded, shuffled.tolist()), "shuffled")
        for row, n in enumerate(lengths.tolist()):
            alone = results(_rows(full, [row], slice(n)))
            assert_same([padded["y"][:n, [row]]], [alone["y"]], f"outputs of row {row}")
            assert not padded["y"][n:, row].any()
            assert_same(_of(padded, [row])[1:], list(alone.values())[1:], f"states of row {row}")


@every_cell
def test_padding_is_not_looked_at_and_gets_no_gradient(cell: Cell) -> None:
    lengths = torch.tensor([2, 0, 5, 3])
    call = random_call(cell, torch.float32, Sizes(5, 4, 3, 5, 2), "state")._replace(lengths=lengths)
    d = random_gradients(results(call))
    wanted = [*results(call).values(), *gradients(results(call), leaves(call), d).values()]
    behind = torch.arange(5).unsqueeze(1) >= lengths
    poisoned = changed(call, lambda v: v.detach().clone())
    for v in (poisoned.x, *(poisoned.inputs or {}).values()):
        v[behind] = torch.nan
    poisoned = changed(poisoned, lambda v: v.requires_grad_())
    d = {n: v if v is None or n != "y" else v.clone() for n, v in d.items()}
    assert d["y"] is not None
    d["y"][behind] = torch.nan
    found = results(poisoned)
    grads = gradients(found, leaves(poisoned), d)
    assert_same([*found.values(), *grads.values()], wanted)
    assert not any(grads[n][behind].any() for n in grads if n == "x" or n.startswith("input "))


@every_cell
def test_without_a_gradient_the_bits_are_those_of_training(cell: Cell) -> None:
    for form in ("state", "packed", "lengths"):
        call = random_call(cell, torch.float32, Sizes(5, 3, 5, 17, 2), form)
        trained = results(call)
        with torch.no_grad():
            assert_same(list(results(call).values()), list(trained.values()), form)
