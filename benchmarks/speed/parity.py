"""Do two contenders compute the same? Asked at the very shape whose time is printed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Largest difference over the largest value of the tensor, float32. Outputs are sums over I + H
# products and what the steps before them carry on; weight gradients sum over all B T on top.
VALUES = 1e-5
GRADIENTS = 5e-5


@dataclass(frozen=True)
class Parity:
    """What the comparison found.

    Attributes:
        ok: every tensor is within its tolerance.
        worst: the tensor that is nearest to its tolerance, or past it.
        error: its largest difference over its largest value.
        tolerance: what that may be.
    """

    ok: bool
    worst: str
    error: float
    tolerance: float


def compare(expected: dict[str, Tensor], got: dict[str, Tensor]) -> Parity:
    """Every tensor of `expected` beside its namesake; one that is missing or misshapen is red."""
    found = []
    for name, value in expected.items():
        tolerance = GRADIENTS if name.startswith("d_") else VALUES
        found.append(Parity(False, name, _error(value, got.get(name)), tolerance))
    worst = max(found, key=lambda p: _nan_is_worst(p.error / p.tolerance))
    return Parity(worst.error <= worst.tolerance, worst.worst, worst.error, worst.tolerance)


def _error(expected: Tensor, got: Tensor | None) -> float:
    if got is None or got.shape != expected.shape:
        return float("inf")
    largest = expected.abs().max().clamp(min=1e-30)
    return float((got - expected).abs().max() / largest)


def _nan_is_worst(value: float) -> float:
    return value if value == value else float("inf")
