"""The backward direction as a forward one: each row from its own end, and turned back."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.backends.call import Call


class Turn:
    """The order in which the backward direction reads the steps of each row.

    Turning twice is doing nothing except for steps after a row's end, which are zeros afterwards.

    Args:
        call: with steps (T, B).
    """

    def __init__(self, call: Call) -> None:
        T, B = call.x.shape[:2]
        self._whole = call.lengths is None
        steps = torch.arange(T, device=call.x.device).unsqueeze(1)
        ends = torch.full((B,), T, device=call.x.device) if call.lengths is None else call.lengths
        self._order = ends.to(call.x.device) - 1 - steps  # below 0 after the end
        self._steps = steps

    def call(self, call: Call) -> Call:
        """The call of this one backward direction as a forward one."""
        return call._replace(
            x=self._read(call.x), reset=self._reset(call.reset),
            norms=None if call.norms is None else torch.zeros_like(call.norms),
            inputs={n: self._read(v) for n, v in (call.inputs or {}).items()},
            zoneout=None if call.zoneout is None else tuple(
                self._read(v[0]).unsqueeze(0) for v in call.zoneout
            ),
        )  # fmt: skip

    def back(self, v: Tensor) -> Tensor:
        """(T, B, ...) of one order in the other, zero after a row's end."""
        if self._whole:
            return self._read(v)
        alive = (self._order >= 0).view(*self._order.shape, *[1] * (v.dim() - 2))
        return torch.where(alive, self._read(v), 0)

    def _reset(self, reset: Tensor | None) -> Tensor | None:
        """Between t and t - 1 it is one before the step that reads t - 1."""
        if reset is None:
            return None
        T, order = len(self._order), self._order
        return reset.gather(0, (order + 1).clamp(0, T - 1)) & (self._steps > 0) & (order >= 0)

    def _read(self, v: Tensor) -> Tensor:
        """(T, B, ...) with each row's steps in this order."""
        if self._whole:
            return v.flip(0)
        rows = torch.arange(self._order.shape[1], device=v.device)
        return v[self._order.clamp(min=0), rows]
