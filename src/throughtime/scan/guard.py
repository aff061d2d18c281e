"""The guard on the Autograd key of a raw op: pass the call on, or raise where it would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import TransformError


def guarded(op: Any, name: str) -> Callable[..., list[Tensor]]:
    """The kernel of the Autograd key: pass the call on, unless a derivative would be lost."""

    def guard(*args: Any) -> list[Tensor]:
        if torch._C._functorch.get_dynamic_layer_stack_depth():
            raise TransformError(
                f"throughtime::{name} is called below torch.func inside a compiled function, where "
                f"its derivative would be silently zero; apply the transform outside torch.compile"
            )
        tensors = [v for arg in args if isinstance(arg, list) for v in arg if torch.is_tensor(v)]
        if torch.autograd.forward_ad._current_level >= 0 and any(_tangent(v) for v in tensors):
            raise TransformError(
                f"throughtime::{name} has no forward-mode derivative; call the layer itself"
            )
        with torch._C._AutoDispatchBelowAutograd():
            found: list[Tensor] = op(*args)
        if torch.is_grad_enabled() and any(v.requires_grad for v in tensors):
            refusing = _Refusal.apply(name, len(found), *found, *tensors)  # type: ignore[no-untyped-call]
            return list(refusing)
        return found

    return guard


class _Refusal(torch.autograd.Function):
    """Passes an op's results on and raises where their derivative would be asked for."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> Any:
        ctx.name = name
        return tuple(v.view_as(v) for v in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *d_results: Any) -> Any:
        raise TransformError(
            f"throughtime::{ctx.name} has no derivative of its own, so neither an exported program "
            f"nor a transform inside torch.compile can be trained; train the layer itself"
        )


def _tangent(v: Tensor) -> bool:
    return torch.autograd.forward_ad.unpack_dual(v).tangent is not None
