"""The learning rate as a function of the step and of nothing else."""

from __future__ import annotations

import math

from throughtime.tasks.recipe import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of step 0, 1, ...: a linear warm-up, then the decay of the recipe.

    warm-up    lr (step + 1) / warmup
    cosine     lr (1 + cos(pi q)) / 2      q = (step - warmup) / (steps - warmup)
    linear     lr (1 - q)
    constant   lr
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    q = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    decay = {"cosine": (1 + math.cos(math.pi * q)) / 2, "linear": 1 - q, "constant": 1.0}
    return recipe.lr * decay[recipe.schedule]
