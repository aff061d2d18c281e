"""What backward sees at a step, by torch's own operations: norms of gradients, and clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor, ...]


def watched(
    state: State, clip: Tensor | None, norms: Tensor | None, roots: Sequence[Tensor]
) -> State:
    """The new states of a step, whose gradients will be looked at.

    Each is a variable of its own: what a cell computes from its own new c, as an LSTM's h, is no
    path by which the state c matters to the loss.

    Args:
        state: each (B, width).
        clip: (), the largest norm of a row's gradients, all states side by side; None clips none.
        norms: (B, states), to be filled with the norm of each row's gradient by each state,
            before clipping.
        roots: what gradients are asked by; a state that depends on none of them has one too.
    """
    if clip is not None:
        state = tuple(_Clipped.apply(clip, *state))  # type: ignore[no-untyped-call]
    if norms is not None:
        state = tuple(
            v.view_as(v) if v.requires_grad or not roots else _Rooted.apply(v, *roots)  # type: ignore[no-untyped-call]
            for v in state
        )
        for k, v in enumerate(state):
            if v.requires_grad:
                v.register_hook(_Norm(norms[:, k]))
    return state


class _Norm:
    """A hook that writes each row's norm, squares summed in float64."""

    def __init__(self, to: Tensor) -> None:
        self._to = to

    def __call__(self, d: Tensor | None) -> None:
        self._to.copy_(
            torch.zeros_like(self._to) if d is None else d.detach().double().norm(dim=-1)
        )


class _Rooted(torch.autograd.Function):
    """A state as it is, which backward reaches on its way to the roots, and goes no further."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, *roots: Tensor) -> Any:
        return v.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, d: Any) -> Any:
        return (None,) * ctx.count


class _Clipped(torch.autograd.Function):
    """States as they are; rows of their gradients times c / n where their norm n is above c."""

    generate_vmap_rule = True

    @staticmethod
    def forward(clip: Tensor, *state: Tensor) -> Any:
        return tuple(v.clone() for v in state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *d: Any) -> Any:
        c = ctx.saved_tensors[0].double()
        square = torch.stack([v.double().square().sum(-1, keepdim=True) for v in d]).sum(0)
        over = square > c.square()
        scale = torch.where(over, c / torch.where(over, square, 1).sqrt(), 1)
        return (None, *(v * scale.to(v.dtype) for v in d))
