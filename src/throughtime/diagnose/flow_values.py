"""The numbers that `GradientFlow` logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from throughtime.diagnose.pulse import Pulse

_LEAST = -45.0
"""log10 of less than float32 holds: what is logged for a gradient that is exactly zero."""


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def gradient_norm(module: nn.Module) -> Tensor:
    """||g|| of all gradients there are."""
    return torch.nn.utils.get_total_norm(
        [p.grad for p in module.parameters() if p.grad is not None]
    )


def updates(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """||delta theta|| / ||theta|| of every parameter that is not zero."""
    sizes = {n: v.norm() for n, v in before.items()}
    return {
        n: float((after[n].detach() - v).norm() / sizes[n])
        for n, v in before.items()
        if sizes[n] > 0
    }


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
