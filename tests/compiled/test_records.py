"""The sequence of every state, as `trace` gives it: value, gradient and bits of compiled code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.testing import assert_close

from tests.compiled.calls import (
    CELLS,
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
from tests.tolerance import TOLERANCE
from throughtime import Cell, Recurrent, cells
from throughtime.backends import choose
from throughtime.backends.call import Call

pytestmark = pytest.mark.usefixtures("whole_teams")

SEVERAL = [cell for cell in CELLS if len(cell.state_names) > 1]
several_states = pytest.mark.parametrize("cell", SEVERAL, ids=repr)

CASES = {
    "plain": Sizes(7, 3, 5, 17, 2), "state": Sizes(5, 1, 3, 33), "initial": Sizes(4, 9, 3, 5, 2),
    "lengths": Sizes(6, 5, 3, 17, 2), "packed_initial": Sizes(7, 5, 3, 9, 2),
    "reset_both": Sizes(7, 2, 5, 16, 2), "reset_lengths": Sizes(6, 4, 3, 7, 2),
    "reset_packed": Sizes(6, 4, 3, 17), "masked_reset": Sizes(5, 3, 3, 6, 2),
    "masked_packed": Sizes(5, 4, 3, 17, 2),
}  # fmt: skip


def _recorded(cell: Cell, dtype: torch.dtype, form: str, sizes: Sizes) -> Call:
    return random_call(cell, dtype, sizes, form)._replace(record=True)


@every_dtype
@every_cell
def test_records_and_gradients_through_them_are_the_reference_s(
    cell: Cell, dtype: torch.dtype
) -> None:
    for form, sizes in CASES.items():
        check_call(_recorded(cell, dtype, form, sizes))


@several_states
def test_a_gradient_by_one_record_alone(cell: Cell) -> None:
    """Whatever is not looked at has no gradient, and lines need not lie side by side."""
    call = _recorded(cell, torch.float64, "lengths", Sizes(5, 4, 3, 17, 2))
    found = results(call)
    for name in [n for n in found if not n.startswith("final")]:
        d: dict[str, Tensor | None] = dict.fromkeys(found)
        apart = torch.randn_like(found[name]).unsqueeze(-1).expand(*found[name].shape, 2)
        alike = torch.randn(found[name].shape[-1], dtype=torch.float64).expand_as(found[name])
        for given in (apart.contiguous()[..., 0], alike):
            check_call(call, d | {name: given})


@several_states
def test_a_record_changes_no_bit_of_the_rest(cell: Cell) -> None:
    for form, sizes in CASES.items():
        call = random_call(cell, torch.float32, sizes, form)
        plain, seen = results(call), results(call._replace(record=True))
        assert_same([seen[n] for n in plain], list(plain.values()), form)


@every_dtype
@several_states
def test_records_have_their_bits_with_any_threads(cell: Cell, dtype: torch.dtype) -> None:
    cases = {
        Sizes(7, 3, 5, 64, 2): "reset_both", Sizes(9, 1, 5, 100): "reset_state",
        Sizes(12, 2, 3, 129): "plain", Sizes(12, 5, 3, 17): "reset_packed",
    }  # fmt: skip
    for sizes, form in cases.items():
        call = _recorded(cell, dtype, form, sizes)
        d, wanted = random_gradients(results(call)), list[Tensor]()
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            found = results(call)
            grads = gradients(found, leaves(call), d)
            wanted = wanted or [*found.values(), *grads.values()]
            assert_same([*found.values(), *grads.values()], wanted, f"{number} threads, {form}")


@several_states
def test_a_record_ends_with_the_final_state(cell: Cell) -> None:
    """Of a sequence cut anywhere: the record's step is the state that the first part ends with."""
    call = random_call(cell, torch.float32, Sizes(6, 3, 3, 17), grad=False)
    seen = results(call._replace(record=True))
    names = [n.removeprefix("sequence ") for n in seen if n.startswith("sequence")]
    for t in range(1, 7):
        inputs = {n: v[:t] for n, v in (call.inputs or {}).items()}
        part = results(call._replace(x=call.x[:t], inputs=inputs))
        for name in names:
            assert_same([part[f"final {name}"][0]], [seen[f"sequence {name}"][t - 1, :, 0]])


OPTIONS: dict[str, dict[str, Any]] = {
    "layers": {"num_layers": 2, "bidirectional": True, "residual": True, "merge": "sum"},
    "dilation": {"dilation": 2, "bidirectional": True},
    "checkpoints": {"checkpoint_every": 2, "bidirectional": True, "learn_initial": True},
    "clipping": {"clip_gradient": 0.05, "bidirectional": True},
    "masks": {"recurrent_dropout": 0.4, "zoneout": 0.3, "dropout": 0.2, "num_layers": 2},
}


def _pair(**options: Any) -> tuple[Recurrent, Recurrent]:
    """A compiled layer, and the same with the reference."""
    layer = Recurrent(cells.LSTM(), 3, 5, dtype=torch.float64, backend="cpu", **options)
    plain = copy.deepcopy(layer)
    plain.backend = "reference"
    return layer, plain


def _loss(layer: Recurrent, x: Tensor) -> Tensor:
    """Of every recorded sequence, no two alike."""
    seen = layer.trace(x, lengths=[4, 0, 5]) if not layer.training else layer.trace(x)
    sines = [(k * v).sin().sum() for k, v in enumerate(
        (v for states in seen for v in states.values()), 1)]  # fmt: skip
    return torch.stack(sines).sum()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_trace_with_every_option(options: dict[str, Any], training: bool) -> None:
    x, found = torch.randn(5, 3, 3, dtype=torch.float64), []
    for layer in _pair(**options):
        layer.train(training)
        torch.manual_seed(5)
        loss = _loss(layer, x.requires_grad_())
        found.append([loss, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    assert_close(found[0], found[1], **TOLERANCE[torch.float64])


def test_records_under_transforms_of_torch() -> None:
    layer, plain = (v.eval() for v in _pair(bidirectional=True))
    weights = {name: v.detach() for name, v in layer.named_parameters()}
    x, found = torch.randn(5, 3, 3, dtype=torch.float64), []
    for one in (layer, plain):

        def of(x: Tensor, one: Recurrent = one) -> Tensor:
            return _Loss(one)(x)

        def by_weights(w: dict[str, Tensor], one: Recurrent = one) -> Tensor:
            named = {f"layer.{name}": v for name, v in w.items()}
            return functional_call(_Loss(one), named, (x,))  # type: ignore[no-any-return]

        leaf = x.clone().requires_grad_()
        (once,) = torch.autograd.grad(of(leaf), leaf, create_graph=True)
        (twice,) = torch.autograd.grad(once.square().sum(), leaf)
        found.append([grad(of)(x), vmap(of)(torch.stack((x, 2 * x))), twice, jacrev(of)(x),
                      grad(by_weights)(weights)])  # fmt: skip
    assert_close(found[0], found[1], **TOLERANCE[torch.float64])


class _Loss(torch.nn.Module):
    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return _loss(self.layer, x)


def test_auto_takes_records() -> None:
    call = _recorded(cells.LSTM(), torch.float32, "plain", Sizes(6, 3, 3, 5))
    assert choose(call).name == "cpu"
