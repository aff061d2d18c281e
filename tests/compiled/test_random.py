"""Random equations, and random layers with random options, against the reference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.compiled.calls import CELLS, FLOATS, FORMS, Sizes, assert_near, check_call, random_call
from tests.compiled.equations import Program, programs
from throughtime import Cell, Recurrent
from throughtime.backends import cpu
from throughtime.cell.layout import find_fitting_size

sizes = st.builds(
    Sizes, st.integers(0, 6), st.integers(0, 9), st.integers(0, 19), st.integers(1, 40),
    st.integers(1, 2),
)  # fmt: skip


def _equations_hold(cell: Program, size: Sizes, form: str, seed: int) -> None:
    torch.manual_seed(seed)
    assert cpu.refuses_cell(cell, torch.empty(0)) is None
    check_call(random_call(cell, torch.float64, size, form))


programs_and_calls = given(programs(), sizes, st.sampled_from(list(FORMS)), st.integers(0, 99))


@settings(max_examples=25)
@programs_and_calls
def test_random_equations(cell: Program, size: Sizes, form: str, seed: int) -> None:
    _equations_hold(cell, size, form, seed)


@pytest.mark.soak
@settings(max_examples=1000, derandomize=False)
@programs_and_calls
def test_many_random_equations(cell: Program, size: Sizes, form: str, seed: int) -> None:
    _equations_hold(cell, size, form, seed)


options = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3), "bidirectional": st.booleans(), "bias": st.booleans(),
        "merge": st.sampled_from(["concat", "sum", "mean", "mul"]), "residual": st.booleans(),
        "batch_first": st.booleans(), "learn_initial": st.booleans(),
    }
)  # fmt: skip


def _layers_agree(
    cell: Cell, dtype: torch.dtype, size: Sizes, chosen: dict[str, Any], ragged: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    T, B, I, H, _ = size
    H = find_fitting_size(cell, H)
    if chosen["residual"]:
        note("a residual is added where widths agree")
        I = H
        chosen = chosen | {"merge": "sum"}
    layer = Recurrent(cell, max(I, 1), H, dtype=dtype, backend="cpu", **chosen)
    x = torch.randn(*((B, T) if chosen["batch_first"] else (T, B)), max(I, 1), dtype=dtype)
    given: dict[str, Any] = {"lengths": torch.randint(0, T + 1, (B,))} if ragged else {}
    if cell.inputs:
        widths = {n: cell.width(w, H) for n, w in cell.inputs.items()}
        given["inputs"] = {n: torch.randn(*x.shape[:-1], w, dtype=dtype) for n, w in widths.items()}
    found, wanted = _run(layer, x, given), _run(_reference(layer), x.double(), given)
    assert_near(found, {n: v.double() for n, v in wanted.items()})


def _reference(layer: Recurrent) -> Recurrent:
    plain = copy.deepcopy(layer).double()
    plain.backend = "reference"
    return plain


def _run(layer: Recurrent, x: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs, states and every gradient, of sums that weigh each number differently."""
    x = x.detach().clone().requires_grad_()
    inputs = {
        n: v.to(x).detach().clone().requires_grad_() for n, v in given.get("inputs", {}).items()
    }
    y, state = layer(x, **given | ({"inputs": inputs} if inputs else {}))
    found = {"y": y, **{f"{i} {j}": v for i, p in enumerate(state) for j, v in enumerate(p)}}
    leaves = {"x": x, **inputs, **dict(layer.named_parameters())}
    nothing = 0 * sum(v.sum() for v in leaves.values())  # no step is a legal number of steps
    total = nothing + sum((v * _weights(v)).sum() for v in found.values())
    grads = torch.autograd.grad(total, list(leaves.values()))
    return found | {f"d {n}": g for n, g in zip(leaves, grads, strict=True)}


def _weights(v: Tensor) -> Tensor:
    steps = torch.arange(v.numel(), dtype=torch.float64)
    return torch.sin(steps * 1.7 + 0.3).view(v.shape).to(v.dtype)


layers = given(
    st.sampled_from(CELLS), st.sampled_from(FLOATS), sizes, options, st.booleans(),
    st.integers(0, 99),
)  # fmt: skip


@settings(max_examples=60)
@layers
def test_random_layers(
    cell: Cell, dtype: torch.dtype, size: Sizes, chosen: dict[str, Any], ragged: bool, seed: int
) -> None:
    _layers_agree(cell, dtype, size, chosen, ragged, seed)


@pytest.mark.soak
@settings(max_examples=1500, derandomize=False)
@layers
def test_many_random_layers(
    cell: Cell, dtype: torch.dtype, size: Sizes, chosen: dict[str, Any], ragged: bool, seed: int
) -> None:
    _layers_agree(cell, dtype, size, chosen, ragged, seed)
