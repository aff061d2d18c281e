"""Random calls of compiled code, and the reference's value and gradient of the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.cells.table import CELLS as ALL
from tests.compiled.fed import FED
from tests.compiled.headed import HEADED
from tests.compiled.normed import NORMED
from tests.compiled.normed_widths import NORMED_WIDTHS
from tests.compiled.own import OWN
from tests.compiled.uneven import UNEVEN
from throughtime import Cell
from throughtime.backends import cpu, reference
from throughtime.backends.call import Call, Result
from throughtime.cell.layout import find_fitting_size, parameter_shapes
from throughtime.compiler.plan import make_plan, why_unplanned
from throughtime.scan import scan
from throughtime.scan.operator import flatten, unflatten
from throughtime.scan.prepared import ShortStep, ShortWay

CELLS: Final[list[Cell]] = [
    *(c for c in ALL if cpu.refuses_cell(c, torch.empty(0)) is None),
    *OWN, *FED, *UNEVEN, *NORMED, *NORMED_WIDTHS, *HEADED,
]  # fmt: skip
"""Every cell that is compiled."""

FLOATS: Final = (torch.float32, torch.float64)

every_cell = pytest.mark.parametrize("cell", CELLS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)

TOLERANCE: Final = {torch.float64: 1e-11, torch.float32: 2e-5}
"""Largest difference from the reference in float64, as a share of the tensor's largest number.

float32 rounds to 6e-8; sums over at most 33 steps of 17 rows, of states that are themselves sums
of up to 163 products a step, lose a factor of some hundred at worst. Where a whole tensor is small
because large terms cancelled, a share of the largest number beside it counts.
"""

CANCELLED: Final = 0.05
"""Of the largest number of all tensors, what is too small to be measured by itself."""


class Sizes(NamedTuple):
    """Of a call: steps, rows, inputs, units, directions."""

    T: int
    B: int
    I: int
    H: int
    D: int = 1


FORMS: Final[dict[str, dict[str, bool]]] = {
    "plain": {},
    "state": {"state": True},
    "initial": {"initial": True},
    "no_bias": {"bias": False, "state": True},
    "lengths": {"lengths": True, "state": True},
    "packed": {"packed": True},
    "packed_initial": {"packed": True, "initial": True},
    "reset": {"reset": True},
    "reset_state": {"reset": True, "state": True},
    "reset_both": {"reset": True, "state": True, "initial": True},
    "reset_lengths": {"reset": True, "lengths": True, "initial": True},
    "reset_packed": {"reset": True, "packed": True, "initial": True},
    "masked": {"dropout": True, "zoneout": True, "state": True},
    "masked_reset": {"dropout": True, "zoneout": True, "reset": True, "lengths": True},
    "masked_packed": {"dropout": True, "zoneout": True, "packed": True, "initial": True},
    "record": {"record": True, "state": True},
    "record_reset": {"record": True, "reset": True, "lengths": True, "initial": True},
    "record_packed": {"record": True, "packed": True, "dropout": True, "zoneout": True},
}

NORMALISERS = ("n",)
"""States that outputs are divided by: positive in every network, and without a limit near 0."""


def random_call(
    cell: Cell, dtype: torch.dtype, sizes: Sizes, form: str = "plain", grad: bool = True
) -> Call:
    """A random call whose floating tensors are leaves; numbers as wide as training would have.

    A cell with heads gets the next H that they divide.
    """
    sizes = sizes._replace(H=find_fitting_size(cell, sizes.H))
    T, B, I, H, D = sizes
    asked = FORMS[form]

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, dtype=dtype) * scale).requires_grad_(grad)

    given: dict[str, Any] = {"record": asked.get("record", False)}
    widths = cell.widths(H)
    x = random(T, B, I)

    def start(*rows: int) -> tuple[Tensor, ...]:
        found = (random(*rows, w, scale=0.7) for w in widths)
        pairs = zip(cell.state_names, found, strict=True)
        return tuple(_positive(v) if name in NORMALISERS else v for name, v in pairs)

    if asked.get("state"):
        given["state"] = start(D, B)
    if asked.get("initial"):
        given["initial"] = start(D)
    if asked.get("lengths"):
        given["lengths"] = torch.randint(0, T + 1, (B,))
    if asked.get("packed"):
        sizes_of = torch.randint(1, T + 1, (B,)).sort(descending=True).values if T else None
        alive = torch.zeros(0, dtype=torch.int64)
        if sizes_of is not None and B:
            alive = (sizes_of > torch.arange(int(sizes_of[0])).unsqueeze(1)).sum(1)
        given["batch_sizes"] = alive
        x = random(int(alive.sum()), I)
    widths_of = {n: cell.width(cell.inputs[n], H) for n in cell.layout.inputs}
    if widths_of:
        given["inputs"] = {n: random(*x.shape[:-1], w) for n, w in widths_of.items()}
    if asked.get("reset"):
        given["reset"] = _random_resets(given.get("batch_sizes"), T, B)
    given |= _random_masks(given.get("batch_sizes"), dtype, sizes, widths, asked)
    scales = {"weight_ih": 1 / math.sqrt(max(I, 1)), "weight_hh": 0.8 / math.sqrt(H)}
    shapes = parameter_shapes(cell, I, H, asked.get("bias", True))
    scales = {n: 0.8 / math.sqrt(max(s[-1], 1)) for n, s in shapes.items() if len(s) > 1} | scales
    weights = tuple(
        {n: random(*s, scale=scales.get(n, 0.5)) for n, s in shapes.items()} for _ in range(D)
    )
    return Call(cell, H, x, weights, **given)


def of_parameters(call: Call) -> Call:
    """The call with parameters for weights, whose packs wait from call to call."""
    weights = ({n: torch.nn.Parameter(v.detach()) for n, v in w.items()} for w in call.weights)
    return call._replace(weights=tuple(weights))


def _positive(v: Tensor) -> Tensor:
    return v.detach().abs().add(0.5).requires_grad_(v.requires_grad)


def _random_resets(batch_sizes: Tensor | None, T: int, B: int) -> Tensor:
    """Some before a third of all steps, the first and those behind a row's end among them."""
    if batch_sizes is not None:
        T, B = len(batch_sizes), int(batch_sizes[0]) if len(batch_sizes) else 0
    return torch.rand(T, B) < 0.3


def _random_masks(
    batch_sizes: Tensor | None, dtype: torch.dtype, sizes: Sizes, widths: tuple[int, ...],
    asked: dict[str, bool],
) -> dict[str, Any]:  # fmt: skip
    """Masks as training draws them; zoneout of the last state as eval has it, between 0 and 1."""
    T, B, D = sizes.T, sizes.B, sizes.D
    if batch_sizes is not None:
        T, B = len(batch_sizes), int(batch_sizes[0]) if len(batch_sizes) else 0
    found: dict[str, Any] = {}
    if asked.get("dropout"):
        found["recurrent_mask"] = (torch.rand(D, B, widths[0]) < 0.7).to(dtype) / 0.7
    if asked.get("zoneout"):
        zones = [(torch.rand(D, T, B, w) < 0.3).to(torch.int16) for w in widths]
        zones[-1] = torch.full((1,), 0.3, dtype=dtype).expand(zones[-1].shape)
        found["zoneout"] = tuple(zones)
    return found


def changed(call: Call, change: Any) -> Call:
    """The call with every floating tensor changed."""
    form, tensors = flatten(call)
    return unflatten(
        call.cell,
        form,
        [v if v is None or not v.is_floating_point() else change(v) for v in tensors],
    )


def leaves(call: Call) -> dict[str, Tensor]:
    """Every floating tensor of a call by name."""
    found = {"x": call.x, **{f"input {n}": v for n, v in (call.inputs or {}).items()}}
    for d, weights in enumerate(call.weights):
        found |= {f"{name}[{d}]": v for name, v in weights.items()}
    for what, group in (("state", call.state), ("initial", call.initial)):
        if group is not None:
            names = (f"{what} {n}" for n in call.cell.state_names)
            found |= zip(names, group, strict=True)
    return found


def results(call: Call, backend: str = "cpu") -> dict[str, Tensor]:
    """The sequences and the final states by name."""
    return _named(call, scan(call, backend))


def _named(call: Call, found: Result) -> dict[str, Tensor]:
    names = call.cell.state_names
    others = zip(names[1:], found.sequences[1:], strict=call.record)
    finals = zip(names, found.final, strict=True)
    records = {f"sequence {n}": v for n, v in others}
    return {"y": found.sequences[0], **records, **{f"final {n}": v for n, v in finals}}


def gradients(
    found: dict[str, Tensor], by: dict[str, Tensor], d: dict[str, Tensor | None], **options: Any
) -> dict[str, Tensor]:
    """Gradients of the inner product of results and `d`; zeros where nothing flows."""
    reached = [n for n, v in found.items() if d[n] is not None and v.requires_grad]
    if not reached:
        return {n: torch.zeros_like(v) for n, v in by.items()}
    grads = torch.autograd.grad(
        [found[n] for n in reached], list(by.values()), [d[n] for n in reached],
        allow_unused=True, materialize_grads=True, **options,
    )  # fmt: skip
    return dict(zip(by, grads, strict=True))


def random_gradients(found: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """A random gradient into each result."""
    return {n: torch.randn_like(v) for n, v in found.items()}


def expected(
    call: Call, d: dict[str, Tensor | None] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Value and gradients of the same numbers by the reference in float64."""
    wide = changed(call, lambda v: v.detach().double().requires_grad_(v.requires_grad))
    values = _named(wide, reference.run(wide))
    if d is None:
        return values, {}
    by = {n: v for n, v in leaves(wide).items() if v.requires_grad}
    return values, gradients(values, by, {n: v if v is None else v.double() for n, v in d.items()})


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], times: float = 1.0) -> None:
    """Every tensor differs by no more than TOLERANCE, so many times, from what is wanted."""
    assert list(found) == list(wanted)
    largest = max([w.abs().max().item() for w in wanted.values() if w.numel()], default=0.0)
    for name, v in found.items():
        w = wanted[name].detach()
        assert v.shape == w.shape, f"{name}: {tuple(v.shape)} instead of {tuple(w.shape)}"
        error = (v.detach().double() - w).abs().max().item() if v.numel() else 0.0
        own = w.abs().max().item() if w.numel() else 0.0
        allowed = times * TOLERANCE[v.dtype] * max(own, CANCELLED * largest)
        assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor], said: str = "") -> None:
    """Every tensor has the same bits; two NaN are not the same."""
    for i, (v, w) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(v, w), (
            f"{said} tensor {i}: {(v != w).sum().item()} of {v.numel()} differ"
        )


def check_call(call: Call, d: dict[str, Tensor | None] | None = None) -> None:
    """Compiled value and every gradient equal the reference's."""
    found = results(call)
    d = random_gradients(found) if d is None else d
    by = {n: v for n, v in leaves(call).items() if v.requires_grad}
    values, grads = expected(call, d)
    assert_near(found, values, _times(call))
    assert_near(gradients(found, by, d), grads, _times(call))


def _times(call: Call) -> float:
    """Few units that are nearly equal are divided by their small deviation at every step."""
    planned = why_unplanned(call.cell) is None
    return 8.0 if planned and make_plan(call.cell).rowwise and call.hidden_size < 8 else 1.0


def on_leaves(call: Call) -> Call:
    """The call on fresh leaves of the same numbers and strides."""
    return changed(call, lambda v: v.detach().requires_grad_())


def with_x(call: Call, x: Tensor) -> Call:
    """The call on another input."""
    return call._replace(x=x)


@contextmanager
def long_way() -> Iterator[None]:
    """Inside, no call goes the short way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShortWay, "run", lambda *_: None)
        patch.setattr(ShortStep, "step", lambda *_: None)
        yield
