"""What is asked of a backward pass."""

from __future__ import annotations

from typing import NamedTuple


class Asked(NamedTuple):
    """What beside its key the words of a call's backward pass follow from.

    Attributes:
        d_y: of the gradient by y, bytes from step to step and from row to row.
        d_y_first: bytes from one direction to the next.
        x, weights: whether their gradients are wanted.
        adds: whether those by weights are added to others.
    """

    d_y: tuple[int, int]
    d_y_first: int
    x: bool
    weights: bool
    adds: bool

    @property
    def given(self) -> tuple[str, ...]:
        """Words of a direction that are addresses of what the call makes."""
        chains = ("d_bias",) if self.adds else ()
        return ("d_x", "d_W", "d_inputs", "norms", *chains)
