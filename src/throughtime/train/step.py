"""What a training step follows from: its batch, learning rate, optimizer, clipping and seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import AdamW, Optimizer

from throughtime.tasks import Task
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.task import Batch


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
    clipped = _find_largest(gradients) > recipe.clip_threshold
    clip_grad_value_(held, recipe.clip_threshold)
    return float(norm), clipped


def _find_largest(gradients: Iterable[Tensor]) -> float:
    return max(float(g.abs().max()) for g in gradients)


_BETAS = (0.9, 0.98)


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer of a recipe, in its first state."""
    return AdamW(
        parameters, lr=recipe.lr, betas=_BETAS, weight_decay=recipe.weight_decay, fused=True
    )


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """The seed of all that is random in one part of one step; -1: of the initial weights."""
    place = f"{seed} {step} {part}" if part else f"{seed} {step}"
    digest = hashlib.sha256(place.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def cut(task: Task, batch: Batch, part: int, parts: int) -> tuple[Batch, float]:
    """One of the parts in which a batch is computed: every parts-th row, from that of its number.

    Rows of like lengths lie side by side where a task sorts them, so all parts are about as long.

    Returns:
        The rows, none where the batch has too few, and what their loss counts for in the batch's.
    """
    if parts == 1:
        return batch, 1.0
    pairs = zip(batch, task.row_axes, strict=True)
    rows = tuple(x.movedim(n, 0)[part::parts].movedim(0, n).contiguous() for x, n in pairs)
    whole = task.weight(batch)
    return rows, task.weight(rows) / whole if whole else 0.0


class StepBatches:
    """The batch of every step.

    Which one a step gets is decided by (seed, epoch, step) and by nothing that happened before,
    so a run that was killed goes on with the batch it would have had.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._epoch = -1
        self._batches: Sequence[Batch] = ()

    def batch(self, step: int) -> Batch:
        """The batch of step 0, 1, ...; every pass over the data has the same number of steps."""
        if self._epoch < 0:
            self._turn_to(0)
        epoch, place = divmod(step, len(self._batches))
        if epoch != self._epoch:
            self._turn_to(epoch)
        return self._batches[place]

    def _turn_to(self, epoch: int) -> None:
        self._epoch, self._batches = epoch, self._task.epoch(epoch)
