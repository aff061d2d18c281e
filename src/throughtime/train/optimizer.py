"""What a training step hangs on beside its batch: the optimizer, and the seed of all chance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer

from throughtime.tasks.recipe import Recipe

_BETAS = (0.9, 0.98)


def optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer of a recipe, in its first state."""
    return AdamW(
        parameters, lr=recipe.lr, betas=_BETAS, weight_decay=recipe.weight_decay, fused=True
    )


def step_seed(seed: int, step: int) -> int:
    """The seed of everything random in one step; -1 is the drawing of the initial weights."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
