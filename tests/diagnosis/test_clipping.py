"""Clipping against torch's own clippers and sums written out; and the set-up of the pilot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from throughtime.diagnosis.quantities.clipping import clipping, gradients
from throughtime.errors import OptionError

T, H, B, M = 60, 24, 10, 24


class Adder(nn.Module):
    """A tanh network that reads values and marks and says the sum of the marked."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.rnn = nn.RNN(2, H)
        self.head = nn.Linear(H, 1)
        nn.init.normal_(self.rnn.get_parameter("weight_hh_l0"), std=gain / math.sqrt(H))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.rnn(x)[0][-1]).squeeze(-1)
        return found


def _batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(9)
    found = []
    for _ in range(M):
        values, marks = torch.rand(T, B, generator=draw), torch.zeros(T, B)
        for half in (0, 1):
            place = torch.randint(T // 2, (B,), generator=draw) + half * T // 2
            marks[place, torch.arange(B)] = 1
        found.append((torch.stack((values, marks), -1), (values * marks).sum(0)))
    return found


def _losses(model: nn.Module) -> Iterator[Tensor]:
    return (nn.functional.mse_loss(model(x), y) for x, y in _batches())


def _by_backward(model: nn.Module, kind: str | None, c: float) -> Tensor:
    """(M, P): `.grad` of each batch, clipped by torch."""
    rows = []
    for loss in _losses(model):
        model.zero_grad()
        loss.backward()
        if kind == "norm":
            clip_grad_norm_(model.parameters(), c)
        elif kind == "value":
            clip_grad_value_(model.parameters(), c)
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    return torch.stack(rows).double()


def _cos(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / float(a.norm() * b.norm())


@pytest.mark.parametrize(("kind", "c"), [("norm", 1.0), ("value", 0.1), ("norm", 1e9)])
@pytest.mark.parametrize("gain", [0.6, 2.0])
def test_every_number_is_a_direct_computation_s(kind: Any, c: float, gain: float) -> None:
    model = Adder(gain)
    g, u = _by_backward(model, None, c), _by_backward(model, kind, c)
    found = clipping(gradients(model, _losses(model)), c, kind)
    mean, clipped = g.mean(0), u.mean(0)
    assert found.norms == pytest.approx(g.norm(dim=1).tolist(), rel=1e-3)
    assert found.clip_rate == sum(not torch.equal(a, b) for a, b in zip(g, u, strict=True)) / M
    assert found.mean_shrink == pytest.approx(
        float((u.norm(dim=1) / g.norm(dim=1)).mean()), rel=1e-4
    )
    assert found.mean_cosine == pytest.approx(_cos(clipped, mean), abs=1e-3)
    each = [_cos(a, b) for a, b in zip(u, g, strict=True)]
    assert found.batch_cosine == pytest.approx(sum(each) / M, abs=1e-3)
    assert found.mean_bias == pytest.approx(float((clipped - mean).norm() / mean.norm()), abs=1e-3)
    assert found.split_half_cosine == pytest.approx(_cos(g[::2].mean(0), g[1::2].mean(0)), abs=1e-3)
    scale = float(g.var(0).sum() / mean.norm() ** 2)
    assert found.noise_scale_batches == pytest.approx(scale, rel=1e-2)
    assert found.mean_norm == pytest.approx(float(mean.norm()), rel=1e-2)
    assert all(p.grad is None for p in model.parameters())


def test_a_norm_keeps_each_direction_and_bends_the_mean_where_gradients_explode() -> None:
    model = Adder(2.0)
    g = list(gradients(model, _losses(model)))
    norm, value = clipping(g, 1.0), clipping(g, 0.1, "value")
    assert norm.batch_cosine == pytest.approx(1, abs=1e-9)
    assert norm.mean_cosine < 0.97
    assert value.batch_cosine < 0.9
    assert norm.is_noise
    assert norm.median_norm > 100
    calm = Adder(0.6)
    assert not clipping(gradients(calm, _losses(calm)), 1.0).is_noise


def test_two_gradients_by_hand() -> None:
    """g = (3, 4) and (0, 1), c = 1: u = (0.6, 0.8) and (0, 1)."""
    pair = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])]
    found = clipping(pair, 1)
    assert found.clip_rate == 0.5
    assert found.mean_shrink == pytest.approx(0.6)
    assert found.mean_cosine == pytest.approx((0.3 * 1.5 + 0.9 * 2.5) / math.sqrt(0.9 * 8.5))
    assert found.mean_bias == pytest.approx(math.hypot(1.2, 1.6) / math.sqrt(8.5))
    assert found.split_half_cosine == pytest.approx(0.8)
    assert found.noise_scale_batches == pytest.approx((26 - 2 * 8.5) / 8.5)
    assert not found.is_noise


def test_what_cannot_be_measured_is_refused() -> None:
    one = torch.ones(3)
    for gs, text in (
        ([], "at least 2 batches, got 0"),
        ([one], "at least 2 batches, got 1"),
        ([one, one * math.nan], "gradient of batch 1 has NaN or infinity"),
        ([one * 0, one * 0], "mean gradient is zero"),
    ):
        with pytest.raises(OptionError, match=text):
            clipping(gs, 1.0)
    for c in (0, math.inf, math.nan, True):
        with pytest.raises(OptionError, match="threshold must be a finite number above 0, got"):
            clipping([one, one], c)
    kind: Any = "l1"
    with pytest.raises(OptionError, match="kind must be norm or value, got 'l1'"):
        clipping([one, one], 1.0, kind)


def test_a_model_without_gradients_is_refused() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(OptionError, match="loss of batch 0 depends on no parameter"):
        next(gradients(model, [torch.zeros(())]))
    with pytest.raises(OptionError, match="no parameter that requires a gradient; unfreeze it"):
        next(gradients(model.requires_grad_(False), [torch.zeros(())]))
