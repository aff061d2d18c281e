"""Connectivity against whole Jacobians of torch's own layers, one row at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tolerance import TOLERANCE
from throughtime import Recurrent, cells, from_torch
from throughtime.diagnosis.quantities.connectivity import connectivity
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch

T, B = 11, 3


def _x() -> Tensor:
    return torch.rand(T, B, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _by_hand(layer: Any, x: Tensor, step: int) -> list[float]:
    """exp(mean over rows of ln ||w^T dy(step)/dx_t||), from the whole Jacobian of each row."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        width = layer(x)[0].shape[-1]
    w = torch.randn(width, dtype=torch.float64, generator=draw)
    logs = torch.zeros(T, dtype=torch.float64)
    for b in range(B):
        J: Any = torch.autograd.functional.jacobian(
            lambda v: layer(v.unsqueeze(1))[0][step, 0], x[:, b]
        )  # (width, T, 3)
        logs += torch.einsum("w,wti->ti", w / w.norm(), J).norm(dim=-1).log()
    found: list[float] = (logs / B).exp().tolist()
    return found


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_norm_is_that_of_the_whole_jacobian(kind: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, kind)(3, 6, 2, bidirectional=bidirectional).double()
    found = connectivity(from_torch(layer), Batch(_x()), name="it", shown=4)
    assert (found.name, found.output_steps) == ("it", (2, 5, 7, 10))
    for step, norms in zip(found.output_steps, found.norms, strict=True):
        assert norms == pytest.approx(
            _by_hand(layer, _x(), step), rel=1e-9, abs=TOLERANCE[torch.float64]["atol"]
        )
        if not bidirectional:
            assert norms[step + 1 :] == (0.0,) * (T - 1 - step)


def test_a_linear_chain_loses_what_its_weight_says() -> None:
    layer = Recurrent(cells.Elman("identity"), 1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.fill_(0.5 if "hh" in name else 3.0)
    x = torch.rand(T, B, 1, dtype=torch.float64)
    found = connectivity(layer, Batch(x), shown=1)
    assert found.norms[0] == pytest.approx([3 * 0.5 ** (T - 1 - t) for t in range(T)])


def test_few_steps_are_all_shown() -> None:
    layer = from_torch(nn.GRU(3, 6))
    found = connectivity(layer, Batch(torch.rand(3, 2, 3)))
    assert found.output_steps == (0, 1, 2)


def test_what_cannot_be_measured_is_refused() -> None:
    layer = from_torch(nn.GRU(3, 6))
    with pytest.raises(ShapeError, match="needs steps and rows"):
        connectivity(layer, Batch(torch.rand(0, 2, 3)))
    with pytest.raises(OptionError, match="at step 0 by the inputs is not finite"):
        connectivity(layer, Batch(torch.full((1, 2, 3), math.nan)))
