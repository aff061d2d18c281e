"""What learns: a model of a task, one step at a time, and what looks on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError, RunError
from throughtime.tasks import Task
from throughtime.tasks.task import Batch
from throughtime.train.step import StepBatches, clip, cut, learning_rate, make_optimizer, step_seed
from throughtime.train.world import World

if TYPE_CHECKING:
    from throughtime.train.keeper import Journal

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
        torch.default_generator.manual_seed(step_seed(self.task.recipe.seed, self.done, part))
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
        self.world.agree("data", few, "give all of them the same files and versions")

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
