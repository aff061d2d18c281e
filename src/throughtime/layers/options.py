"""What a layer does around its cell, as one frozen record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from throughtime.errors import OptionError

Merge = Literal["concat", "sum", "mean", "mul"] | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """What a layer does around its cell; each is off by default.

    Attributes:
        merge: how the outputs of two directions become one.
        dropout: share of a layer's outputs dropped before the next layer.
        residual: every layer after the first adds its input to its output.
        recurrent_dropout: share of the state dropped before U, one mask a sequence.
        zoneout: share of the state's units that keep their old value, of all states or by name.
        weight_dropout: share of the recurrent weights dropped, one mask a call.
        dilation: d, a number or one a layer: h_t follows h_{t-d}.
        learn_initial: whether the state a sequence starts from is a parameter.
        checkpoint_every: k, training keeps every k-th state and computes the rest again.
        clip_gradient: c, the largest norm of a row's gradient by its states at a step.
    """

    merge: Merge = "concat"
    dropout: float = 0.0
    residual: bool = False
    recurrent_dropout: float = 0.0
    zoneout: float | Mapping[str, float] = 0.0
    weight_dropout: float = 0.0
    dilation: tuple[int, ...] = field(default=(1,))
    learn_initial: bool = False
    checkpoint_every: int | None = None
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.merge) and self.merge not in ("concat", "sum", "mean", "mul"):
            raise OptionError(
                f"merge must be concat, sum, mean, mul or a function of two tensors, "
                f"got {self.merge!r}"
            )
        for name in ("dropout", "recurrent_dropout", "weight_dropout"):
            _check_share(name, getattr(self, name))
        shares = self.zoneout.values() if isinstance(self.zoneout, Mapping) else [self.zoneout]
        for share in shares:
            _check_share("zoneout", share)
        for d in self.dilation:
            if isinstance(d, bool) or not isinstance(d, int) or d < 1:
                raise OptionError(f"dilation must be a positive integer, got {d!r}")
        k = self.checkpoint_every
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise OptionError(f"checkpoint_every must be a positive integer or None, got {k!r}")
        c = self.clip_gradient
        if c is not None and (isinstance(c, bool) or not isinstance(c, int | float) or not c > 0):
            raise OptionError(f"clip_gradient must be a number above 0 or None, got {c!r}")

    def zoneout_of(self, state: str) -> float:
        """The share for one of the cell's states."""
        return self.zoneout.get(state, 0.0) if isinstance(self.zoneout, Mapping) else self.zoneout

    @property
    def has_zoneout(self) -> bool:
        """Whether any state has zoneout."""
        return (
            any(self.zoneout.values()) if isinstance(self.zoneout, Mapping) else bool(self.zoneout)
        )


def _check_share(name: str, share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise OptionError(f"{name} must be a number from 0 to 1, got {share!r}")
