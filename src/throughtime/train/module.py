"""The training module: a task and its model as PyTorch Lightning takes them."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from throughtime.errors import RunError
from throughtime.tasks import Task
from throughtime.tasks.task import Batch
from throughtime.train.clipping import clip
from throughtime.train.journal import Journal
from throughtime.train.optimizer import optimizer, step_seed
from throughtime.train.schedule import learning_rate
from throughtime.train.steps import Steps

CURE = "train again with a lower --lr or with --clip norm"


class Learner(pl.LightningModule):
    """Trains `model` on `task` from step `done` on; what is random depends on the step alone."""

    def __init__(self, task: Task, model: nn.Module, journal: Journal) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.journal = journal
        self.done = 0  # steps behind us
        self.restored: dict[str, Any] | None = None  # the optimizer's state to go on from
        self.last_loss = math.nan

    def configure_optimizers(self) -> Optimizer:
        made = optimizer(self.task.recipe, self.model.parameters())
        if self.restored is not None:
            made.load_state_dict(self.restored)
        return made

    def train_dataloader(self) -> Steps:
        return Steps(self.task, lambda: self.done)

    def val_dataloader(self) -> list[str]:
        return ["validation"]  # the whole split is one batch to Lightning; the task cuts it

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch  # the loader made it where it is used

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(step_seed(self.task.recipe.seed, self.done))
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = learning_rate(self.task.recipe, self.done)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.task.loss(self.model, batch)
        self.last_loss = float(loss.detach())
        self._check_finite("loss", self.last_loss)
        return loss

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        norm, clipped = clip(self.task.recipe, self.model.parameters())
        self._check_finite("norm of the gradient", norm)
        self.journal.window.add(self.last_loss, norm, clipped)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step; the callbacks' `on_train_batch_end`, which comes next, finds it counted."""
        super().optimizer_step(*args, **kwargs)
        recipe = self.task.recipe
        self.done += 1
        if self.done % recipe.log_every == 0 or self.done == recipe.steps:
            self.journal.steps_row(self.done, learning_rate(recipe, self.done - 1))

    def validation_step(self, batch: str, batch_idx: int) -> None:
        metrics = self.task.score(self.model, batch).metrics
        self.journal.row(step=self.done, split=batch, **metrics)
        self.log_dict(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()},
            batch_size=1,
        )

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"the {what} must stay finite, and it is {value} at step {self.done}; {CURE}; the "
                "last checkpoint is kept"
            )
