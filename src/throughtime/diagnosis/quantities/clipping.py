"""What clipping does to the gradient: how often, how much, and how it turns the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from throughtime.diagnosis.observe.examined import ExaminedModel, Loss
from throughtime.errors import OptionError

Kind = Literal["norm", "value"]

NOISE = 0.5
"""The split-half cosine below which the mean gradient counts as noise."""


@dataclass(frozen=True)
class Clipping:
    """Clipping at one threshold, seen over M batches at fixed weights.

    A cosine with a vector that is zero counts as 0.

    Attributes:
        kind: "norm": all gradients together scaled to norm c; "value": each number cut at c.
        threshold: c, in units of the gradient; None where only the raw gradients are measured:
            then the five shares below are None too.
        norms: ||g|| of each batch.
        clip_rate: the share of batches of which anything is clipped.
        mean_shrink: E ||clip(g)|| / ||g||; for a norm E min(1, c / ||g||).
        mean_cosine: cos(E clip(g), E g), how far the mean gradient is turned.
        batch_cosine: E cos(clip(g), g), how far each gradient is.
        mean_bias: ||E clip(g) - E g|| / ||E g||.
        split_half_cosine: cos of the means over the even and over the odd batches, unclipped:
            the noise floor of all the above.
        noise_scale_batches: B = tr Cov(g) / ||E g||^2, in batches of the size given; near M
            when there is nothing but noise.
    """

    kind: str
    threshold: float | None
    norms: tuple[float, ...]
    clip_rate: float | None
    mean_shrink: float | None
    mean_cosine: float | None
    batch_cosine: float | None
    mean_bias: float | None
    split_half_cosine: float
    noise_scale_batches: float

    @property
    def mean_norm(self) -> float:
        """||E g||, from E ||g||^2 = ||E g||^2 + the variance, by the noise scale."""
        M = len(self.norms)
        square = sum(n * n for n in self.norms) / M
        return math.sqrt(square / (1 + self.noise_scale_batches * (M - 1) / M))

    @property
    def median_norm(self) -> float:
        """The median of ||g||."""
        return statistics.median(self.norms)

    @property
    def is_noise(self) -> bool:
        """Whether the raw gradient is noise: then mend the Jacobian first, not the clipping."""
        return self.split_half_cosine < NOISE


def gradients(model: nn.Module, losses: Iterable[Tensor]) -> Iterator[Tensor]:
    """The gradient of each loss by all parameters that train, side by side in float64.

    `.grad` is neither read nor written. Losses may come from a generator:
    `gradients(model, (loss(model(x), y) for x, y in batches))`.

    Raises:
        OptionError: no parameter trains, or a loss does not depend on any of them.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise OptionError("the model has no parameter that requires a gradient; unfreeze it first")
    for number, loss in enumerate(losses):
        if not loss.requires_grad:
            raise OptionError(
                f"the loss of batch {number} depends on no parameter that requires a gradient"
            )
        gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
        yield torch.cat([g.detach().flatten().double() for g in gradient])


def clipping(gradients: Iterable[Tensor], threshold: float | None, kind: Kind = "norm") -> Clipping:
    """Measure what clipping at a threshold does to these gradients.

    Args:
        gradients: one vector a batch, (P,), of M >= 2 fresh batches at fixed weights; they are
            read once, one after the other.
        threshold: c, in units of the gradient; None for the norms and the noise alone.
        kind: "norm" or "value".

    Raises:
        OptionError: fewer than two gradients, one that is not finite, none that is not zero, or
            a threshold outside its rule.

    Source: Pascanu, Mikolov and Bengio, On the Difficulty of Training Recurrent Neural Networks
    (2013) for the norm; McCandlish et al., An Empirical Model of Large-Batch Training (2018) for
    the noise scale.
    """
    if threshold is not None and (isinstance(threshold, bool) or not 0 < threshold < math.inf):
        raise OptionError(f"threshold must be a finite number above 0, got {threshold!r}")
    if kind not in ("norm", "value"):
        raise OptionError(f"kind must be norm or value, got {kind!r}")
    norms: list[float] = []
    shrinks: list[float] = []
    cosines: list[float] = []
    zero = torch.zeros((), device="cpu")
    halves, clipped_sum, clipped = [zero, zero], zero, 0
    for number, g in enumerate(gradients):
        g = _check(g, number)
        u, norm = g if threshold is None else _clip(g, threshold, kind), float(g.norm())
        norms.append(norm)
        clipped += not torch.equal(u, g)
        shrinks.append(float(u.norm()) / norm if norm else 1.0)
        cosines.append(_cosine(u, g) if norm else 1.0)
        halves[number % 2] = halves[number % 2] + g
        clipped_sum = clipped_sum + u
    return _summarise(kind, threshold, clipped, (norms, shrinks, cosines), halves, clipped_sum)


def _summarise(
    kind: str, threshold: float | None, clipped: int,
    each: tuple[list[float], list[float], list[float]],
    halves: list[Tensor], clipped_sum: Tensor,
) -> Clipping:  # fmt: skip
    """All the numbers from the sums over the batches."""
    norms, shrinks, cosines = each
    M = len(norms)
    if M < 2:
        raise OptionError(f"what clipping does to the mean shows over at least 2 batches, got {M}")
    even, odd = halves
    mean, clipped_mean = (even + odd) / M, clipped_sum / M
    size = float(mean.norm())
    if size == 0:
        raise OptionError("the mean gradient is zero, so there is nothing to clip")
    spread = (sum(n * n for n in norms) - M * size**2) / (M - 1)
    raw = threshold is None
    return Clipping(
        kind=kind,
        threshold=None if threshold is None else float(threshold),
        norms=tuple(norms),
        clip_rate=None if raw else clipped / M,
        mean_shrink=None if raw else sum(shrinks) / M,
        mean_cosine=None if raw else _cosine(clipped_mean, mean),
        batch_cosine=None if raw else sum(cosines) / M,
        mean_bias=None if raw else float((clipped_mean - mean).norm()) / size,
        split_half_cosine=_cosine(even, odd),
        noise_scale_batches=max(0.0, spread) / size**2,
    )


def _check(g: Tensor, number: int) -> Tensor:
    g = g.detach().flatten().double()
    if not bool(g.isfinite().all()):
        raise OptionError(
            f"the gradient of batch {number} has NaN or infinity in it, which no clipping mends"
        )
    return g


def _clip(g: Tensor, c: float, kind: str) -> Tensor:
    if kind == "value":
        return g.clamp(-c, c)
    norm = float(g.norm())
    return g * (c / norm) if norm > c else g


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of the vectors scaled to length 1, so that squares do not overflow; 0 with a zero vector."""
    sizes = float(a.norm()), float(b.norm())
    if 0.0 in sizes:
        return 0.0
    return min(1.0, max(-1.0, float((a / sizes[0]) @ (b / sizes[1]))))


def measure_clipping(
    examined: ExaminedModel, batches: Sequence[Any], loss: Loss | None, clip: float | None
) -> Clipping:
    """Measure what clipping does to the gradients of these batches."""
    losses = (examined.value(batch, loss) for batch in batches)
    return clipping(gradients(examined.model, losses), clip)
