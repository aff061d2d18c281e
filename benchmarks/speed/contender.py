"""Who takes part: a call to be timed, and what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.figures import flops
from benchmarks.speed.material import Material


@dataclass(frozen=True)
class Contender:
    """One program on one case.

    Attributes:
        run: one call, what is timed.
        values: one call; name -> tensor of what it computed ("y", "h_n", "d_x", ...), for the
            parity test. None: it computes nothing that could be compared.
        flops: the arithmetic of one call.
        clear: lets go of what a call leaves behind: gradients.
    """

    run: Callable[[], object]
    values: Callable[[], dict[str, Tensor]] | None
    flops: float
    clear: Callable[[], object] = lambda: None


def torch_contender(
    forward: Callable[[Tensor], tuple[Tensor, ...]], weights: dict[str, Tensor], m: Material
) -> Contender:
    """A contender that is a function of torch.

    Args:
        forward: x -> (y, h_n) or (y, h_n, c_n).
        weights: name -> the leaf that gets the gradient.
        m: the case.
    """
    training = m.mode == "training"
    x = m.x.detach().requires_grad_(training)
    leaves = {"x": x, **weights}

    def clear() -> None:
        for leaf in leaves.values():
            leaf.grad = None

    def train() -> tuple[Tensor, ...]:
        clear()
        found = forward(x)
        torch.autograd.backward(found[0], m.d_y)
        return found

    def infer() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return forward(x)

    run = train if training else infer

    def values() -> dict[str, Tensor]:
        found = dict(zip(("y", "h_n", "c_n"), (v.detach() for v in run()), strict=False))
        if training:
            found |= {f"d_{n}": v.grad for n, v in leaves.items() if v.grad is not None}
        return found

    return Contender(run, values, flops(m.cell, m.shape, m.mode), clear)
