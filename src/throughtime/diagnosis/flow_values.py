"""The numbers that `GradientFlow` logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.pulse import Pulse

_LEAST = -45.0
"""log10 of less than float32 holds: what is logged for a gradient that is exactly zero."""


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def common_norm(values: list[Any]) -> float:
    """The norm of all numbers of some tensors; not finite where a square overflows, too."""
    if not values:
        return 0.0
    with torch.no_grad():
        sizes = torch._foreach_norm(values)
        return float(torch.stack([v.to(sizes[0]) for v in sizes]).norm())


def updates(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """||delta theta|| / ||theta|| of every parameter that is not zero."""
    old = list(before.values())
    moved = torch._foreach_norm(torch._foreach_sub([after[n].detach() for n in before], old))
    sizes = [float(v) for v in torch._foreach_norm(old)]
    found = zip(before, moved, sizes, strict=True)
    return {n: float(v) / size for n, v, size in found if size > 0}


def of_layers(found: Sequence[Pulse], lag: int | None) -> dict[str, float]:
    """Horizon, log10 rho at the lag and saturation of each layer and direction."""
    values: dict[str, float] = {}
    for pulse in found:
        if pulse.log10_rho:
            horizon = pulse.horizon_steps()
            values[f"horizon_steps/{pulse.place}"] = pulse.steps if horizon is None else horizon
            far = min(pulse.steps - 1, pulse.steps if lag is None else lag)
            values[f"log10_rho/{pulse.place}"] = max(_LEAST, pulse.at(far))
        if pulse.saturated is not None:
            values[f"saturated/{pulse.place}"] = pulse.saturated
    return values
