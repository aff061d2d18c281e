"""The one training loop: a model of a task learns, one step at a time, while others watch.

What is random or chosen in a step, its batch, seed and learning rate, follows from its number.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import AdamW, Optimizer

from throughtime.errors import OptionError, RunError
from throughtime.tasks import Task
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.task import Batch
from throughtime.train.world import World

if TYPE_CHECKING:
    from throughtime.train.loop import Journal


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
    clipped = max(float(g.abs().max()) for g in gradients) > recipe.clip_threshold
    clip_grad_value_(held, recipe.clip_threshold)
    return float(norm), clipped


_BETAS = (0.9, 0.98)


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer of a recipe, in its first state."""
    return AdamW(
        parameters, lr=recipe.lr, betas=_BETAS, weight_decay=recipe.weight_decay, fused=True
    )


def make_step_seed(seed: int, step: int, part: int = 0) -> int:
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


_COMPARED = 4  # batches that all processes must see alike


class Learner:
    """Trains `model` on `task`; what is random in a step depends on the step's number alone.

    Args:
        task: its recipe says how.
        model: of the task; trained in place.
        cure: what to do where the loss is not finite, as the end of a sentence.
        world: the processes that learn together, each from its parts of every batch; this one
            alone if left out.

    Attributes:
        done: steps taken.
        parts: in which every batch is computed.
        loss, norm, clipped: of the last step: the loss in nats, the norm of its gradient before
            clipping, and whether that clipped.
    """

    def __init__(
        self, task: Task, model: nn.Module, cure: str = "", world: World | None = None
    ) -> None:
        self.task, self.model = task, model.train()
        self.optimizer = make_optimizer(task.recipe, model.parameters())
        self.done = 0
        self.loss, self.norm, self.clipped = math.nan, math.nan, False
        self.world = world or World()
        self.parts = task.recipe.parts or self.world.size
        self._cure = cure
        self._batches = StepBatches(task)
        self._parameters = list(model.parameters())
        self._lengths = [*(p.numel() for p in self._parameters), 1]  # of gradients and loss
        self._empty = self._parameters[0].new_empty(self.world.room(sum(self._lengths)))

    def step(self) -> None:
        """One training step.

        Raises:
            RunError: the loss or its gradient is not finite; the weights are as before.
        """
        recipe, batch = self.task.recipe, self._batches.batch(self.done)
        alone = self.parts == self.world.size == 1
        loss = self._backward(batch, 0) if alone else self._add_parts(batch)
        self.loss = self.check_finite("loss", loss)
        norm, self.clipped = clip(recipe, self._parameters)
        self.norm = self.check_finite("norm of the gradient", norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.done)
        self.optimizer.step()
        self.done += 1

    def _backward(self, whole: Batch, part: int) -> float:
        """What one part of a batch has in its loss, and in the gradients, which are made."""
        batch, share = cut(self.task, whole, part, self.parts)
        # torch.manual_seed, which asks every kind of device, takes 300 us.
        torch.default_generator.manual_seed(make_step_seed(self.task.recipe.seed, self.done, part))
        self.optimizer.zero_grad()
        if not share:
            return 0.0
        loss = self.task.loss(self.model, batch)
        if share != 1:
            loss = loss * share
        loss.backward()
        return float(loss.detach())

    def _add_parts(self, whole: Batch) -> float:
        """As `_backward` of a whole batch, computed in its parts by all processes."""
        flat = self.world.add_up(self.parts, lambda part: self._flat(whole, part), self._empty)
        *gradients, loss = flat[: sum(self._lengths)].split(self._lengths)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return float(loss)

    def _flat(self, whole: Batch, part: int) -> Tensor:
        """The gradients of a part and its loss; zero is that of a parameter without one."""
        loss = self._backward(whole, part)
        gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten()
                     for p in self._parameters]  # fmt: skip
        rest = self._empty.new_zeros(len(self._empty) - sum(self._lengths))
        return torch.cat([*gradients, self._empty.new_tensor([loss]), rest])

    def score(self, split: str) -> dict[str, float]:
        """The metrics of the model on a split; the first process finds them for all."""
        with torch.no_grad():
            metrics = self.world.from_first(
                lambda: self.task.score(self.model.eval(), split).metrics
            )
        self.model.train()
        return metrics

    def check_world(self) -> None:
        """Sees that batches can be computed in parts, by all processes together.

        Raises:
            OptionError: the task has no parts, or there are more of them than rows.
            RunError: the processes see different data.
        """
        parts, task = self.parts, self.task
        if parts == self.world.size == 1:
            return
        if not task.row_axes:
            raise OptionError(
                f"several processes share the parts of a batch, and one of {task.name} is whole, "
                f"got {max(parts, self.world.size)}; leave out --processes and --parts"
            )
        few = [self._batches.batch(self.done + n) for n in range(_COMPARED)]
        rows = max(batch[0].shape[task.row_axes[0]] for batch in few)
        if rows < parts:
            raise OptionError(
                f"processes, and parts, must be at most as many as a batch has rows, {rows}, got "
                f"{parts}; give fewer --processes or --parts, or a larger --batch-size"
            )
        self.world.agree(few)

    def check_finite(self, what: str, value: float) -> float:
        """The value, when it is finite; raises RunError."""
        if not math.isfinite(value):
            raise RunError(
                f"the {what} must stay finite, and it is {value} at step {self.done}{self._cure}"
            )
        return value


class Watcher(Protocol):
    """What looks on while a learner learns; each of its methods may be left as it is.

    Attributes:
        enough: set after a validation where the learner shall stop.
    """

    enough: bool = False

    def begin(self, journal: Journal, log: logging.Logger) -> None:
        """Called before the first step of a run, with where its rows and its lines go."""
        return

    def before_step(self, learner: Learner) -> None:
        """Called before every step."""
        return

    def after_step(self, learner: Learner) -> None:
        """Called after every step, which is counted already."""
        return

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        """Called after every validation, which comes after `after_step`."""
        return


@dataclass
class Best:
    """The validation with the lowest figure that was finite, and a copy of its weights."""

    value: float = math.inf
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, value: float, learner: Learner) -> None:
        """Keeps the learner's weights when `value` is lower than any before."""
        if value < self.value:
            self.value, self.step = value, learner.done
            self.weights = {name: w.clone() for name, w in learner.model.state_dict().items()}


class Patience(Watcher):
    """Has had enough after `patience` validations in a row without progress, or one not finite."""

    def __init__(self, monitor: str, patience: int) -> None:
        self.monitor, self.patience = monitor, patience
        self.lowest, self.waited = math.inf, 0

    def after_validation(self, learner: Learner, metrics: Mapping[str, float]) -> None:
        value = metrics[self.monitor]
        if not math.isfinite(value):
            self.enough = True
        elif value < self.lowest:
            self.lowest, self.waited = value, 0
        else:
            self.waited += 1
            self.enough = self.waited >= self.patience


def train(learner: Learner, watchers: Sequence[Watcher]) -> None:
    """Trains to the last step, or to the first validation at which a watcher has had enough."""
    recipe = learner.task.recipe
    while learner.done < recipe.steps:
        for one in watchers:
            one.before_step(learner)
        learner.step()
        for one in watchers:
            one.after_step(learner)
        if learner.done % recipe.validate_every == 0 or learner.done == recipe.steps:
            metrics = learner.score("validation")
            for one in watchers:
                one.after_validation(learner, metrics)
            if any(one.enough for one in watchers):
                break


def begin_model(task: Task) -> nn.Module:
    """The model of a task with the initial weights of its recipe."""
    torch.manual_seed(make_step_seed(task.recipe.seed, -1))
    return task.model()
