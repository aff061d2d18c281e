"""Gradient clipping, and how often it had something to clip."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from throughtime.tasks.recipe import Recipe


def clip(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> tuple[float, bool]:
    """Clips gradients in place: by their common norm, by value, or not.

    Returns:
        The norm of all gradients before clipping, and whether anything was clipped.
    """
    held = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in held if p.grad is not None]
    if recipe.clip == "norm":
        norm = clip_grad_norm_(held, recipe.clip_threshold)
        return float(norm), bool(norm > recipe.clip_threshold)
    norm = torch.nn.utils.get_total_norm(gradients)
    if recipe.clip == "none":
        return float(norm), False
    clipped = _largest(gradients) > recipe.clip_threshold
    clip_grad_value_(held, recipe.clip_threshold)
    return float(norm), clipped


def _largest(gradients: Iterable[Tensor]) -> float:
    return max(float(g.abs().max()) for g in gradients)
