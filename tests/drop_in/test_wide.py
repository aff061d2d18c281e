"""Layers whose weights no second-level cache holds: panels take turns, the next one is fetched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime

KINDS = (nn.RNN, nn.GRU, nn.LSTM)
T, B, I, H = 5, 9, 261, 389  # U in float64 takes 1.2 MB and more; no size fills its vectors


def _results(layer: Any, x: Tensor) -> list[Tensor]:
    """Outputs, last states and all gradients."""
    y, state = layer(x)
    states = state if isinstance(state, tuple) else (state,)
    wanted = [x, *layer.parameters()]
    loss = y.square().sum() + sum(v.sum() for v in states)
    return [y, *states, *torch.autograd.grad(loss, wanted)]


def _layers(kind: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    torch.manual_seed(5)
    theirs = kind(I, H, bidirectional=True, dtype=dtype)
    return theirs, throughtime.from_torch(theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, B, 14])
def test_values_and_gradients_are_torchs(kind: Any, rows: int) -> None:
    theirs, ours = _layers(kind, torch.float64)
    x = torch.randn(T, rows, I, dtype=torch.float64, requires_grad=True)
    for a, b in zip(_results(ours, x), _results(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_those_of_one_thread(kind: Any, dtype: torch.dtype) -> None:
    _, ours = _layers(kind, dtype)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    number, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                step = ours(x[:1, :3])[0]
            found.append([*_results(ours, x), step])
    finally:
        torch.set_num_threads(number)
    for some in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(some, found[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_has_its_bits_alone_and_cut_in_time(kind: Any, dtype: torch.dtype) -> None:
    _, ours = _layers(kind, dtype)
    one = throughtime.from_torch(kind(I, H, dtype=dtype))
    x = torch.randn(T, B, I, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(ours(x[:, 3:4])[0], ours(x)[0][:, 3:4])
        whole = one(x)[0]
        first, state = one(x[:2])
        assert torch.equal(torch.cat([first, one(x[2:], state)[0]]), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 29, 65])
def test_single_steps_have_the_bits_of_the_whole(kind: Any, dtype: torch.dtype, rows: int) -> None:
    """Those of up to 64 rows read weights as they lie, others in packs."""
    _, both = _layers(kind, dtype)
    one = throughtime.from_torch(kind(I, H, num_layers=2, dtype=dtype))
    cell = getattr(throughtime, f"{kind.__name__}Cell")(I, H, dtype=dtype)
    cell.load_state_dict({n[:-3]: v for n, v in one.state_dict().items() if n.endswith("_l0")})
    first = throughtime.from_torch(kind(I, H, dtype=dtype))
    first.load_state_dict({n: v for n, v in one.state_dict().items() if n.endswith("_l0")})
    x = torch.randn(T, rows, I, dtype=dtype)
    with torch.no_grad():
        assert "torch" not in one.explain(1, rows) and cell.explain(rows) == "cpu"
        assert torch.equal(_steps(one, x), one(x)[0])
        assert torch.equal(_steps(lambda v, s: _of_cell(cell, v, s), x), first(x)[0])
        assert torch.equal(both(x[:1])[0][0, :, :H], both(x)[0][0, :, :H])


def _steps(layer: Any, x: Tensor) -> Tensor:
    """Outputs of a call for each step."""
    outputs, state = [], None
    for step in x.split(1):
        y, state = layer(step, state)
        outputs.append(y)
    return torch.cat(outputs)


def _of_cell(cell: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    new = cell(x[0], state)
    return (new[0] if isinstance(new, tuple) else new)[None], new
