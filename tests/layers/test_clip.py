"""U-Clip: the formulas by hand, what is lost over many steps, and an optimizer's manners."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.tolerance import TOLERANCE
from throughtime import UClip
from throughtime.errors import OptionError

EXACT: Any = TOLERANCE[torch.float64]


def _parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in shapes]


def _gradients(steps: int, *shapes: tuple[int, ...], scale: float = 1.0) -> list[list[Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [
        [scale * torch.randn(s, dtype=torch.float64, generator=draw) for s in shapes]
        for _ in range(steps)
    ]


def _stepped(optimizer: Any, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()


def _by_hand(kind: str, c: float, gradients: list[list[Tensor]]) -> list[list[float]]:
    """u of every step as one list of numbers: one number at a time, in plain Python."""
    carry = [0.0] * sum(g.numel() for g in gradients[0])
    found = []
    for step in gradients:
        g = [v for t in step for v in t.flatten().tolist()]
        s = [a + b for a, b in zip(g, carry, strict=True)]
        norm = math.sqrt(sum(v * v for v in s))
        if kind == "norm":
            u = [v * c / norm for v in s] if norm > c else s
        else:
            u = [max(-c, min(c, v)) for v in s]
        carry = [a - b for a, b in zip(s, u, strict=True)]
        found.append(u)
    return found


@pytest.mark.parametrize("kind", ["norm", "value"])
@pytest.mark.parametrize("c", [0.3, 2.5, 50.0])
def test_every_step_is_the_formula(kind: Any, c: float) -> None:
    parameters = _parameters((3, 2), (5,))
    optimizer = UClip(torch.optim.SGD(parameters, lr=1.0), c, kind)
    gradients = _gradients(12, (3, 2), (5,))
    for step, u in zip(gradients, _by_hand(kind, c, gradients), strict=True):
        _stepped(optimizer, parameters, step)
        used = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        assert_close(used, torch.tensor(u, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("kind", ["norm", "value"])
def test_little_is_lost_where_plain_clipping_loses_a_third(kind: Any) -> None:
    """1000 gradients of small mean and rare large values: the bias of the sum of all steps."""
    shape, N, c = (40,), 1000, {"norm": 2.0, "value": 0.4}[kind]
    draw = torch.Generator().manual_seed(8)
    mean = torch.full(shape, 0.1, dtype=torch.float64)
    rare = (torch.rand(N, generator=draw) < 0.05).double()[:, None]
    g = 20 * rare * mean + 0.1 * torch.randn(N, *shape, dtype=torch.float64, generator=draw)
    (p,) = _parameters(shape)
    optimizer = UClip(torch.optim.SGD([p], lr=0.0), c, kind)
    u, plain = torch.zeros_like(p), torch.zeros_like(p)
    for row in g:
        _stepped(optimizer, [p], [row])
        assert p.grad is not None
        u = u + p.grad
        plain = plain + (row * min(1, c / row.norm()) if kind == "norm" else row.clamp(-c, c))
    total = g.sum(0)
    assert (u - total).norm() / total.norm() < 0.05
    assert (plain - total).norm() / total.norm() > 0.3
    assert_close(total - u, optimizer.carry(p), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_a_saved_optimizer_goes_on_to_the_same_weights(inner: Any) -> None:
    gradients = _gradients(10, (4, 3), (3,), scale=5.0)
    through = _parameters((4, 3), (3,))
    optimizer = UClip(inner(through, lr=0.1), 1.0)
    for step in gradients[:5]:
        _stepped(optimizer, through, step)
    file = io.BytesIO()
    torch.save(
        {"weights": [p.detach().clone() for p in through], "o": optimizer.state_dict()}, file
    )
    file.seek(0)
    saved = torch.load(file)
    resumed = [nn.Parameter(w) for w in saved["weights"]]
    again = UClip(inner(resumed, lr=0.7), 1.0)
    again.load_state_dict(saved["o"])
    copied, twin = copy.deepcopy((through, optimizer))
    for step in gradients[5:]:
        _stepped(optimizer, through, step)
        _stepped(again, resumed, step)
        _stepped(twin, copied, step)
    assert all(torch.equal(a, b) for a, b in zip(through, resumed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(through, copied, strict=True))
    assert optimizer.carry(through[0]).norm() > 1


def test_an_optimizer_s_own_state_loads_with_empty_carries() -> None:
    (p,) = _parameters((3,))
    plain = torch.optim.Adam([p], lr=0.1)
    _stepped(plain, [p], [torch.ones(3, dtype=torch.float64)])
    (q,) = _parameters((3,))
    optimizer = UClip(torch.optim.Adam([q], lr=0.1), 0.1)
    _stepped(optimizer, [q], [torch.ones(3, dtype=torch.float64)])
    assert optimizer.carry(q).norm() > 1
    optimizer.load_state_dict(plain.state_dict())
    assert torch.equal(optimizer.carry(q), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(optimizer.state[q]["exp_avg"], plain.state[p]["exp_avg"])


def test_a_wide_threshold_is_the_optimizer_alone() -> None:
    ours, theirs = _parameters((4,)), _parameters((4,))
    optimizer = UClip(torch.optim.Adam(ours, lr=0.1), 1e6)
    plain = torch.optim.Adam(theirs, lr=0.1)
    for step in _gradients(5, (4,)):
        _stepped(optimizer, ours, step)
        _stepped(plain, theirs, step)
    assert torch.equal(ours[0], theirs[0])


def test_schedules_groups_and_zero_grad_reach_the_optimizer() -> None:
    first, second = _parameters((2,), (2,))
    inner = torch.optim.SGD([first], lr=0.4)
    optimizer = UClip(inner, 1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.add_param_group({"params": [second], "lr": 3.0})
    one = torch.ones(2, dtype=torch.float64)
    _stepped(optimizer, [first, second], [one, one])
    u = torch.full((2,), 0.5, dtype=torch.float64)  # the norm of both together is 2
    assert_close(first.detach(), -0.4 * u, **EXACT)
    assert_close(second.detach(), -3.0 * u, **EXACT)
    schedule.base_lrs.append(3.0)
    schedule.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.2)
    optimizer.zero_grad()
    assert first.grad is None
    assert_close(optimizer.carry(first), u, **EXACT)
    optimizer.step()  # nothing to step on
    assert_close(first.detach(), -0.4 * u, **EXACT)


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    (p,) = _parameters((2,))
    optimizer = UClip(torch.optim.SGD([p], lr=1.0), 1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (10 * p).sum() + 7
        loss.backward()
        return loss

    assert optimizer.step(closure) == 7
    assert_close(p.detach(), torch.full((2,), -math.sqrt(0.5), dtype=torch.float64), **EXACT)


INF, NAN = math.inf, math.nan
NOT_FINITE: dict[str, tuple[Any, list[float], list[float], list[float]]] = {
    # kind, gradient, u and carry; the carry before is [2, 0, 0], and c is 1
    "value, inf": ("value", [INF, 1e6, 0.5], [1.0, 1.0, 0.5], [2.0, 1e6 - 1, 0.0]),
    "value, -inf": ("value", [-INF, -1e6, 0.5], [-1.0, -1.0, 0.5], [2.0, 1 - 1e6, 0.0]),
    "value, NaN": ("value", [NAN, 1e6, 0.5], [NAN, 1.0, 0.5], [2.0, 1e6 - 1, 0.0]),
    "norm, inf": ("norm", [INF, 1e6, 0.5], [1.0, 0.0, 0.0], [2.0, 1e6, 0.5]),
    "norm, two inf": ("norm", [INF, -INF, 0.5], [0.5**0.5, -(0.5**0.5), 0.0], [2.0, 0.0, 0.5]),
    "norm, NaN": ("norm", [NAN, 3.0, -4.0], [NAN, 0.6, -0.8], [2.0, 2.4, -3.2]),
    "norm, NaN and zeros": ("norm", [NAN, 0.0, 0.0], [NAN, 0.0, 0.0], [2.0, 0.0, 0.0]),
    "norm, both": ("norm", [NAN, INF, 4.0], [NAN, 1.0, 0.0], [2.0, 0.0, 4.0]),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_a_gradient_that_is_not_finite(name: str) -> None:
    """What torch's own clipping makes NaN or throws away is clipped or kept; NaN stays NaN."""
    kind, gradient, u, carry = NOT_FINITE[name]
    one, two = _parameters((1,), (2,))
    optimizer = UClip(torch.optim.SGD([one, two], lr=1.0), 1.0, kind)
    _stepped(optimizer, [one, two], [torch.tensor([3.0]).double(), torch.zeros(2).double()])
    before = torch.cat((one, two)).detach()
    g = torch.tensor(gradient, dtype=torch.float64)
    _stepped(optimizer, [one, two], [g[:1], g[1:]])
    moved = before - torch.cat((one, two)).detach()
    assert_close(moved, torch.tensor(u, dtype=torch.float64), equal_nan=True, **EXACT)
    found = torch.cat((optimizer.carry(one), optimizer.carry(two)))
    assert_close(found, torch.tensor(carry, dtype=torch.float64), **EXACT)


def test_a_norm_whose_square_overflows_is_clipped_too() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = UClip(torch.optim.SGD([p], lr=1.0), 1.0)
    p.grad = torch.tensor([3e30, -4e30])
    optimizer.step()
    assert_close(p.detach(), torch.tensor([-0.6, 0.8]))


@pytest.mark.parametrize("threshold", [0, -1.0, math.inf, math.nan, True, "1"])
def test_a_threshold_outside_its_rule_is_refused(threshold: Any) -> None:
    with pytest.raises(OptionError, match="threshold must be a finite number above 0, got"):
        UClip(torch.optim.SGD(_parameters((2,)), lr=1.0), threshold)


def test_a_wrong_optimizer_kind_or_gradient_is_refused() -> None:
    parameters: Any = _parameters((2,))
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got \[Par"):
        UClip(parameters, 1.0)
    kind: Any = "l1"
    with pytest.raises(OptionError, match="kind must be norm or value, got 'l1'"):
        UClip(torch.optim.SGD(parameters, lr=1.0), 1.0, kind)
    table = nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(OptionError, match="dense gradients; build the embedding with sparse=False"):
        UClip(torch.optim.SGD(table.parameters(), lr=1.0), 1.0).step()
