"""Why gradients vanish or explode: the Jacobians J_t = ds_t / ds_{t-1} of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from throughtime.diagnosis.observe.steps import (
    Steps,
    check_passage,
    group_by_length,
    list_steps,
    take_rows,
)
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.checks import check_size
from throughtime.layers.layer import Passage

DROPPED, WINDOW, SAMPLED, WIDEST = 10, 20, 20, 128
"""First steps left out of the spectrum; steps of a product; steps with singular values; the widest
state with a whole spectrum."""


@dataclass(frozen=True)
class RecurrentMatrix:
    """One gate's block U of the recurrent weights, where it is square.

    Attributes:
        gate: its name.
        spectral_radius: max |eigenvalue|.
        largest_singular_value: sigma_max.
        orthogonality_defect: ||U^T U - I||_F / sqrt(H).
    """

    gate: str
    spectral_radius: float
    largest_singular_value: float
    orthogonality_defect: float


@dataclass(frozen=True)
class Jacobians:
    """The Jacobians of all states side by side, of one layer and direction.

    Attributes:
        layer: its number.
        direction: 0 forward, 1 backward.
        lyapunov_nats_per_step: largest first, mean over rows, the first 10 steps left out; -inf
            where the Jacobian is singular. The largest 16 where a state has more than 128 numbers.
        singular_values: 5th, 50th and 95th percentile of the singular values of J_t over rows and
            up to 20 steps.
        condition_number: of the product over the last `condition_steps` steps, geometric mean
            over rows; infinite where it is singular, a lower bound from 1e15 on.
        condition_steps: 20, or fewer where a measured row is shorter.
        matrices: each square block of the recurrent weights.
    """

    layer: int
    direction: int
    lyapunov_nats_per_step: tuple[float, ...]
    singular_values: tuple[float, float, float]
    condition_number: float
    condition_steps: int
    matrices: tuple[RecurrentMatrix, ...]


def jacobians(layer: Passage, batch: Batch, *, rows: int = 2) -> tuple[Jacobians, ...]:
    """Measure every layer and direction on the first rows of a batch, in float64.

    Args:
        layer: a recurrent layer of this package.
        batch: time-major and padded, in the layer's layout.
        rows: how many rows of it; of several lengths the longest, each over its steps.

    Raises:
        ShapeError: no more than 10 steps, which the spectrum leaves out.
        OptionError: `rows` is no positive integer; resets, dilation, or states that are not finite.

    Source: Vogt, Puelma Touzel, Shlizerman and Lajoie, On Lyapunov Exponents for RNNs (2020).
    """
    check_passage(layer)
    check_size("rows", rows)
    if max(layer.dilations, default=1) > 1:
        raise OptionError("Jacobians are taken of layers without dilation")
    by_length = [(n, take_rows(batch, n, at)) for n, at in group_by_length(batch, rows)]
    T = by_length[0][0] if by_length else 0
    if T <= DROPPED:
        raise ShapeError(f"a Lyapunov spectrum needs more than {DROPPED} steps, got {T}")
    long = [(n, few) for n, few in by_length if n > DROPPED]
    window = min(WINDOW, *(n for n, _ in long))
    parts = [[(steps, n) for steps in list_steps(layer, few)] for n, few in long]
    return tuple(_measure_parts(one, window) for one in zip(*parts, strict=True))


def _measure_parts(parts: tuple[tuple[Steps, int], ...], window: int) -> Jacobians:
    """Of one layer and direction: the rows of one length after those of another."""
    runs = [_run(steps, T, window) for steps, T in parts]
    exponents, singular, products = (torch.cat(v) for v in zip(*runs, strict=True))
    return _summarise(parts[0][0], exponents, singular, products, window)


def _run(steps: Steps, T: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exponents (B, .), singular values, and each row's product of its last steps."""
    if not all(bool(v.isfinite().all()) for v in steps.after):
        raise OptionError(f"layer {steps.layer} makes NaN or infinity of this batch")
    logs: list[Tensor] = []
    singular: list[Tensor] = []
    q = product = None
    for number, J in enumerate(compute_step_jacobians(steps, T)):
        q, r = torch.linalg.qr(J @ (_start(J) if q is None else q))
        if number >= DROPPED:
            logs.append(r.diagonal(dim1=-2, dim2=-1).abs().log())
        if number % -(-T // SAMPLED) == 0:
            singular.append(torch.linalg.svdvals(J).flatten())
        if number >= T - window:
            product = J if product is None else J @ product
    assert product is not None
    return torch.stack(logs).mean(0), torch.cat(singular), product


def _start(J: Tensor) -> Tensor:
    """(B, N, N), the unit vectors; of a wide state (B, N, 16), drawn and fixed."""
    N = J.shape[-1]
    if N <= WIDEST:
        return torch.eye(N, dtype=J.dtype, device=J.device).expand_as(J)
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randn(N, 16, dtype=J.dtype, generator=draw, device="cpu").to(J.device)
    basis: Tensor = torch.linalg.qr(drawn)[0]
    return basis.expand(len(J), N, 16)


def _summarise(
    steps: Steps, exponents: Tensor, singular: Tensor, product: Tensor, count: int
) -> Jacobians:
    ends = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64, device="cpu")
    low, middle, high = torch.quantile(singular.cpu(), ends).tolist()
    s = torch.linalg.svdvals(product)
    condition = torch.where(s[:, -1] > 0, s[:, 0] / s[:, -1], torch.inf)
    exponents = exponents.mean(0).sort(descending=True).values
    return Jacobians(
        layer=steps.layer,
        direction=steps.direction,
        lyapunov_nats_per_step=tuple(exponents.tolist()),
        singular_values=(low, middle, high),
        condition_number=float(condition.log().mean().exp()),
        condition_steps=count,
        matrices=tuple(_matrices(steps)),
    )


def compute_step_jacobians(steps: Steps, T: int) -> Iterator[Tensor]:
    """(B, N, N) of each step, in the direction's order: row i is the gradient of s_t[i]."""
    B, widths = len(steps.x) // T, [v.shape[-1] for v in steps.before]
    N = sum(widths)
    for t in reversed(range(T)) if steps.direction else range(T):
        at = torch.arange(t * B, (t + 1) * B, device=steps.x.device).repeat_interleave(N)
        one = replace(steps, x=steps.x[at], inputs={n: v[at] for n, v in steps.inputs.items()})
        with torch.enable_grad():
            before = tuple(v[at].requires_grad_() for v in steps.before)
            after = torch.cat(one.again(before), -1)
        picked = torch.eye(N, dtype=after.dtype, device=after.device).repeat(B, 1)
        rows = torch.autograd.grad(after, before, picked, materialize_grads=True)
        yield torch.cat(rows, -1).unflatten(0, (B, N))


def _matrices(steps: Steps) -> Iterator[RecurrentMatrix]:
    for gate, product in steps.parts()[1].items():
        U = product.weight
        if U.shape[0] != U.shape[1]:
            continue
        eye = torch.eye(len(U), dtype=U.dtype, device=U.device)
        yield RecurrentMatrix(
            gate=gate,
            spectral_radius=float(torch.linalg.eigvals(U).abs().max()),
            largest_singular_value=float(torch.linalg.matrix_norm(U, 2)),
            orthogonality_defect=float((U.T @ U - eye).norm()) / len(U) ** 0.5,
        )
