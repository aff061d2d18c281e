"""One line of the table: two programs whose times are compared, after both computed the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.speed.parity import Parity, compare

Run = Callable[[], object]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Line:
    """Two programs.

    Attributes:
        name: what is done, and the shape.
        beside: what `theirs` is.
        ours, theirs: one call each, what is timed.
        parity: of ours with an independent computation of the same.
        goal: the bar.
        at_most: whether our time over theirs must be at most the goal; else theirs over ours at
            least.
    """

    name: str
    beside: str
    ours: Run
    theirs: Run
    parity: Parity
    goal: float
    at_most: bool = False


@dataclass(frozen=True)
class Figure:
    """A number that is no time: bytes, an error."""

    name: str
    value: float
    goal: float


Lines = Iterator[Line | Figure]


def train(
    call: Callable[[Tensor], Tensor], x: Tensor, d_y: Tensor, layer: nn.Module
) -> Callable[[], Values]:
    """A training step: outputs from x, then all gradients from d_y into the outputs."""
    x = x.clone().requires_grad_()
    leaves = {"x": x, **dict(layer.named_parameters())}

    def step() -> Values:
        for leaf in leaves.values():
            leaf.grad = None
        y = call(x)
        y.backward(d_y)  # type: ignore[no-untyped-call]
        found = {f"d_{n}": v.grad for n, v in leaves.items() if v.grad is not None}
        return {"y": y.detach(), **found}

    return step


def infer(call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Values]:
    """Outputs alone."""

    @torch.inference_mode()
    def run() -> Values:
        return {"y": call(x)}

    return run


def parity(ours: Callable[[], Values], expected: Callable[[], Values]) -> Parity:
    """Of values and gradients, as in the benchmark of speed."""
    return compare(expected(), ours())
