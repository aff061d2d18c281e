"""`GradientFlow`: what the gradients of a model do while Lightning trains it."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor, nn

from throughtime.diagnosis import flow_trainer
from throughtime.diagnosis.finite import in_backward, in_forward, in_weights
from throughtime.diagnosis.flow_rules import SCALED, UNSEEN, fired
from throughtime.diagnosis.flow_values import common_norm, of_layers, trained, updates
from throughtime.diagnosis.pulse import Pulse, pulses
from throughtime.diagnosis.rows import rows_of
from throughtime.diagnosis.watch import Watch
from throughtime.errors import NotFiniteError, OptionError, ShapeError, missing_extra

try:
    import pytorch_lightning as pl
except ModuleNotFoundError as error:
    raise missing_extra("pytorch_lightning", "train") from error


class GradientFlow(pl.Callback):
    """Logs how far back a model learns as it trains, and stops it at the first NaN or infinity.

    At training step 0, n, 2 n, ... all loggers of the trainer get, for each recurrent layer and
    direction as `flow/.../encoder.0`: `horizon_steps`, the first lag with rho(k) below 1/1000
    (T where there is none), `log10_rho` at the lag, and `saturated`, the largest share of a gate's
    values at its ends. For the model: `flow/gradient_norm` before clipping, `flow/clip_rate` over
    the steps since the last record where something clips, `flow/update/...` =
    ||delta theta|| / ||theta|| of every parameter, and `flow/update_spread`, the largest of the
    matrices' over the smallest.

    Measured are the first eight rows of the training batch (of ragged ones, the longest), without
    the masks of training, in the weights' dtype, with the gradients that came back in that very
    step. What cannot be measured so is warned of once, and the rest is logged.

    Of several processes the first alone measures, its own rows, and logs.

    A loss, gradient or weight that is not finite raises `NotFiniteError` before any checkpoint of
    that state is written. A step that a scaled loss (16-mixed) overflows in is none, and is left
    alone; with an optimizer that unscales gradients itself, a fused one, the loss alone is checked.

    Args:
        every: n, training steps between records.
        lag: how many steps back the task needs; left out, the whole sequence.

    Raises:
        OptionError: n or lag is no positive whole number; or, as training starts, the model has
            no recurrent layer or its loss depends on nothing that trains.

    Source: Pascanu, Mikolov and Bengio, On the Difficulty of Training Recurrent Neural Networks
    (2013).
    """

    def __init__(self, every: int = 100, lag: int | None = None) -> None:
        for name, value in (("every", every), ("lag", lag)):
            if name == "lag" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name} must be a positive number of steps, got {value!r}")
        self.every = every
        self.lag = lag
        self._watch: Watch | None = None
        self._told: set[str] = set()
        self._norm: float | None = None
        self._pulses: list[Pulse] = []
        self._before: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch = Watch(pl_module)
        self._weights = list(pl_module.parameters())
        self._done = 0  # optimizer steps of this fit
        self._seen, self._clipped = 0, 0  # since the last record
        self._forget()
        self._stop(trainer, in_weights(pl_module))

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        if not loss.requires_grad:
            raise OptionError(
                "the loss depends on nothing that trains; unfreeze a parameter, or do not detach it"
            )
        bad = not math.isfinite(loss.sum().item())
        if flow_trainer.anywhere(trainer, bad):
            found = in_forward(pl_module, self._calls) if bad else flow_trainer.elsewhere()
            self._stop(trainer, found)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        scaled = flow_trainer.scales_loss(trainer)
        if scaled and flow_trainer.unscales_itself(optimizer):
            self._warn("scaled", SCALED)
            return
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            if scaled:  # the scaler leaves this step out
                return
            self._stop(trainer, in_backward(pl_module, self._calls))
        self._norm = norm
        due = self._done % self.every == 0 and trainer.is_global_zero
        if due and self._has_gradient():
            self._pulses = self._measured()
            self._before = {n: p.detach().clone() for n, p in trained(pl_module).items()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if self._norm is None:  # a batch that only adds to the gradient, or one left out
            self._forget()
            return
        if not math.isfinite(common_norm(self._weights)):
            self._stop(trainer, in_weights(pl_module), bad_weights=True)
        clips = flow_trainer.clips_gradients(trainer, pl_module)
        self._seen += 1
        self._clipped += clips and self._gradient_norm() < self._norm * (1 - 1e-5)
        if self._before is not None:
            self._record(trainer, pl_module, clips)
        self._done += 1
        self._forget()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    @property
    def _calls(self) -> list[Any]:
        assert self._watch is not None
        return self._watch.calls

    def _gradient_norm(self) -> float:
        """Infinite where a gradient is not finite, and where squares overflow."""
        return common_norm([p.grad for p in self._weights if p.grad is not None])

    def _has_gradient(self) -> bool:
        found = any(p.grad is not None for p in self._weights)
        if not found:
            self._warn("none", "No parameter has a gradient, so a training step is not logged.")
        return found

    def _forget(self) -> None:
        assert self._watch is not None
        self._watch.clear()
        self._norm, self._pulses, self._before = None, [], None

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def _measured(self) -> list[Pulse]:
        """The pulses of every module's last call."""
        found: list[Pulse] = []
        if not self._calls:
            self._warn("unseen", UNSEEN)
        for call in {c.name: c for c in self._calls}.values():
            try:
                found += pulses(call.name, call.layer, rows_of(call), self.lag)
            except (OptionError, ShapeError) as error:
                self._warn(f"unmeasured {call.name}", f"Nothing is logged of a layer: {error}.")
        return found

    def _record(self, trainer: pl.Trainer, module: nn.Module, clips: bool) -> None:
        assert self._before is not None and self._norm is not None
        moved = updates(self._before, trained(module))
        matrices = [v for n, v in moved.items() if self._before[n].dim() > 1]
        rate = self._clipped / self._seen if clips else None
        values = {"gradient_norm": self._norm, **of_layers(self._pulses, self.lag)}
        values |= {f"update/{name}": value for name, value in moved.items()}
        if matrices and min(matrices) > 0:
            values["update_spread"] = max(matrices) / min(matrices)
        if rate is not None:
            values["clip_rate"] = rate
        for logger in trainer.loggers:
            logger.log_metrics({f"flow/{n}": v for n, v in values.items()}, trainer.global_step)
        clipped = (self._clipped, self._seen)
        for rule, sentence in fired(self._pulses, self.lag, clipped, min(matrices, default=None)):
            self._warn(rule, f"Training step {self._done}: {sentence}")
        self._seen, self._clipped = 0, 0

    def _warn(self, rule: str, sentence: str) -> None:
        if rule not in self._told:
            self._told.add(rule)
            warnings.warn(sentence, stacklevel=2)

    def _stop(
        self, trainer: pl.Trainer, found: NotFiniteError | None, bad_weights: bool = False
    ) -> None:
        """Ends training with an error that names step and tensor; None goes on."""
        if found is None:
            return
        kept = flow_trainer.last_good(trainer, bad_weights)
        text = f"at training step {self._done} {found}{kept}"
        raise NotFiniteError(text, found.tensor, found.name, found.step)
