"""U-Clip: what clipping cuts off a gradient is carried over to the next step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from throughtime.errors import OptionError

Kind = Literal["norm", "value"]


class UClip(Optimizer):
    """An optimizer whose gradients are clipped and what was cut off carried over.

        u_t = clip(g_t + b_t)
        b_{t+1} = g_t + b_t - u_t

    So the sum of all u differs from the sum of all g by the last carry b alone, where plain
    clipping loses a share of every large gradient. The carry stays bounded while the threshold
    is above the size of the *mean* gradient; below it the carry grows, and no threshold helps.

    It replaces the optimizer: `step`, `zero_grad`, `param_groups`, learning-rate schedules and
    checkpoints are those of the optimizer; the carries are saved with its state.

    An infinite number of a gradient is clipped as a very large one would be: to c with "value";
    with "norm" all infinite ones share c and every other number waits in its carry. NaN stays NaN
    and does not count in the norm. Neither changes the carry at its place.

    Args:
        optimizer: the optimizer that takes the steps.
        threshold: c, in units of the gradient.
        kind: "norm": the norm of all g + b together is at most c; "value": each number is.

    Attributes:
        optimizer: the optimizer inside.

    Raises:
        TypeError: `optimizer` is no optimizer.
        OptionError: the threshold or the kind is outside its rule, or a gradient is sparse.

    Source: Elesedy and Hutter, U-Clip: On-Average Unbiased Stochastic Gradient Clipping (2023).
    """

    def __init__(self, optimizer: Optimizer, threshold: float, kind: Kind = "norm") -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        if not number or not 0 < threshold < math.inf:
            raise OptionError(f"threshold must be a finite number above 0, got {threshold!r}")
        if kind not in ("norm", "value"):
            raise OptionError(f"kind must be norm or value, got {kind!r}")
        self.optimizer = optimizer
        self.threshold = float(threshold)
        self.kind = kind
        self._carries: dict[Tensor, Tensor] = {}
        super().__init__(optimizer.param_groups, {})
        self._share()

    def _share(self) -> None:
        """Groups and state are the optimizer's own objects."""
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state
        self.defaults = self.optimizer.defaults

    def carry(self, parameter: Tensor) -> Tensor:
        """b of a parameter, in its shape: what was cut off so far and not yet added back."""
        return self._carries.get(parameter, torch.zeros_like(parameter)).detach()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip with the carries, then the optimizer's step; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._clip()
        self.optimizer.step()
        self._share()
        return loss

    @torch.no_grad()
    def _clip(self) -> None:
        """The gradients g in place become u."""
        parameters = [p for p in self._parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if any(g.is_sparse for g in gradients):
            raise OptionError("UClip takes dense gradients; build the embedding with sparse=False")
        sums = [g + self._carries[p] if p in self._carries else g.clone()
                for p, g in zip(parameters, gradients, strict=True)]  # fmt: skip
        largest = max((float(s.abs().max()) for s in sums if s.numel()), default=0.0)
        clipped = self._clipped(sums, largest)
        for p, g, s, u in zip(parameters, gradients, sums, clipped, strict=True):
            g.copy_(u)
            if math.isfinite(largest):
                self._carries[p] = s - g
            else:
                self._carries[p] = torch.where(s.isfinite(), s - g, self.carry(p))

    def _clipped(self, sums: list[Tensor], largest: float) -> list[Tensor]:
        """u of every g + b; `largest` is the largest size of a number, NaN where one is."""
        c = self.threshold
        if self.kind == "value":
            return [s.clamp(-c, c) for s in sums]
        if math.isfinite(largest):
            scale = self._scale(sums, largest)
            return [s * scale for s in sums]
        infinite = sum(int(s.isinf().sum()) for s in sums)
        if infinite:
            share = c / math.sqrt(infinite)
            zero_or_nan = [s.masked_fill(s.isinf(), 0) * 0 for s in sums]
            return [torch.where(s.isinf(), share * s.sign(), z)
                    for s, z in zip(sums, zero_or_nan, strict=True)]  # fmt: skip
        numbers = [s.nan_to_num(nan=0.0) for s in sums]
        scale = self._scale(numbers, max(float(s.abs().max()) for s in numbers if s.numel()))
        return [s * scale for s in sums]

    def _scale(self, sums: list[Tensor], largest: float) -> float:
        """min(1, c / norm of all); divided by the largest first, since squares overflow float32."""
        if largest == 0:
            return 1.0
        norm = largest * float(get_total_norm([s / largest for s in sums]))
        return min(1.0, self.threshold / norm)

    def _parameters(self) -> list[Tensor]:
        """All parameters, in the order that `state_dict` numbers them."""
        return list(chain.from_iterable(g["params"] for g in self.optimizer.param_groups))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; the carries stay."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer, unless it has it already."""
        if not any(param_group is group for group in self.optimizer.param_groups):
            self.optimizer.add_param_group(param_group)
            self._share()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, with each parameter's carry as `carry`."""
        checkpoint = self.optimizer.state_dict()
        state = {n: dict(v) for n, v in checkpoint["state"].items()}
        for number, p in enumerate(self._parameters()):
            if p in self._carries:
                state.setdefault(number, {})["carry"] = self._carries[p]
        return {**checkpoint, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`; one of the optimizer alone sets the carries to zero."""
        state = {n: {k: v for k, v in values.items() if k != "carry"}
                 for n, values in state_dict["state"].items()}  # fmt: skip
        self.optimizer.load_state_dict(
            {**state_dict, "state": {n: v for n, v in state.items() if v}}
        )
        carries = {n: v["carry"] for n, v in state_dict["state"].items() if "carry" in v}
        self._carries = {p: carries[n].to(p, copy=True)
                         for n, p in enumerate(self._parameters()) if n in carries}  # fmt: skip
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        names = ("optimizer", "threshold", "kind", "_carries")
        return {**super().__getstate__(), **{n: getattr(self, n) for n in names}}
