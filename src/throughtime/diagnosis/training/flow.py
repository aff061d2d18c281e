"""`GradientFlow`: what the gradients of a model do while Lightning trains it.

Where a step has NaN or infinity, also its source: the first tensor, and the first time step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.diagnosis.observe import WatchedCall, choose_rows
from throughtime.diagnosis.observe.every_state import find_first_step, walk, weigh_outputs
from throughtime.diagnosis.training import StepFlow, measure_norm
from throughtime.errors import NotFiniteError, OptionError, missing_extra
from throughtime.torch_private import norms


def are_finite(values: Iterable[Tensor | None]) -> bool:
    """Whether no tensor has NaN or infinity in it; one pass over them, no copy."""
    checked = [v for v in values if v is not None and v.is_floating_point() and v.numel()]
    if not checked:
        return True
    # The largest magnitude: it passes NaN on and, unlike a sum of squares, cannot overflow.
    sizes = norms(checked, float("inf"))
    return bool(torch.stack([s.to(sizes[0]) for s in sizes]).isfinite().all())


def check_weights(model: nn.Module) -> NotFiniteError | None:
    """The first weight that is not finite."""
    for name, p in model.named_parameters():
        if not are_finite([p.detach()]):
            return NotFiniteError(f"the weight {name} has NaN or infinity", "parameter", name)
    return None


def check_forward(model: nn.Module, calls: Sequence[WatchedCall]) -> NotFiniteError:
    """The first tensor that is not finite where the loss is not: weight, input, output or loss."""
    if error := check_weights(model):
        return error
    for call in calls:
        if not _read_data(call.x).numel():
            text = (
                f"the loss is NaN or infinity, and layer {call.words} is given no steps or "
                f"rows, x of {tuple(_read_data(call.x).shape)}; leave empty batches out"
            )
            return NotFiniteError(text, "loss", call.name)
        for what, value in (("input", call.x), ("output", call.outputs)):
            t = find_first_step(_mask_rows(call, call.time_major(value)))
            if t is not None:
                return _make_error(call, f"the {what} of layer {call.words}", what, t)
    return NotFiniteError(
        "the loss is NaN or infinity, and the outputs of all recurrent layers are finite", "loss"
    )


def check_backward(model: nn.Module, calls: Sequence[WatchedCall]) -> NotFiniteError | None:
    """The first gradient that is not finite, going back, with its step; None if all are finite."""
    odd = [n for n, p in model.named_parameters() if not are_finite([p.grad])]
    if not odd:
        return None
    for call in reversed(calls):
        sent = call.d_outputs
        if sent is not None and not are_finite([sent]):
            incoming = call.time_major(sent)
            t = len(incoming) - 1 - (find_first_step(incoming.flip(0)) or 0)
            what = f"the gradient sent back to the outputs of layer {call.words}"
            return _make_error(call, what, "gradient", t, back=True)
    for call in reversed(calls):
        if error := _check_through_time(call):
            return error
    text = f"the gradient of the weight {odd[-1]} has NaN or infinity"
    return NotFiniteError(text, "gradient", odd[-1])


def _check_through_time(call: WatchedCall) -> NotFiniteError | None:
    """Run the call again with every state recorded; None where its gradients are finite."""
    try:
        rows = choose_rows(call, None)
        T = len(rows.batch.x)
        y, finals, walks = walk(call.layer, rows.batch, range(T), last_only=False)
        sent = weigh_outputs(y, finals, rows)
    except (OptionError, ValueError):
        return None
    for one in reversed(walks) if sent is not None else ():
        d = one.gradients(sent)  # type: ignore[arg-type]
        first = find_first_step(d.flip(0))
        if first is not None:
            t = first if one.direction else T - 1 - first
            where = f"the gradient by the state of layer {one.layer} of {call.words}"
            return _make_error(call, where, "gradient", t, back=True)
    return None


def _make_error(
    call: WatchedCall, what: str, tensor: str, t: int, back: bool = False
) -> NotFiniteError:
    way = "going back first" if back else "first"
    text = f"{what} has NaN or infinity, {way} at time step {t} (counted from 0)"
    return NotFiniteError(text, tensor, call.name, t)


def _read_data(x: Any) -> Tensor:
    data: Tensor = x.data if isinstance(x, PackedSequence) else x
    return data


def _mask_rows(call: WatchedCall, v: Tensor) -> Tensor:
    """(T, B, width), with zeros outside of each row."""
    steps = torch.arange(len(v), device=v.device).unsqueeze(1)
    for name, inside in (("starts", torch.ge), ("lengths", torch.lt)):
        if (ends := call.options.get(name)) is not None:
            ends = torch.as_tensor(ends, device=v.device)
            v = torch.where(inside(steps, ends).unsqueeze(-1), v, 0)
    return v


def clips_gradients(trainer: Any, module: nn.Module) -> bool:
    """Whether the trainer clips gradients, or its module does in its own hook."""
    from pytorch_lightning.utilities.model_helpers import is_overridden

    overridden: bool = is_overridden("configure_gradient_clipping", module)
    return bool(trainer.gradient_clip_val) or overridden


def is_anywhere(trainer: Any, true: bool) -> bool:
    """Whether something is true in any of the trainer's processes, all of which must call this."""
    if trainer.world_size == 1:
        return true
    result: bool = trainer.strategy.reduce_boolean_decision(true, all=False)
    return result


def name_last_good(trainer: Any, bad_weights: bool) -> str:
    """Which checkpoint is the last good one, as the end of a sentence; empty without one.

    With `bad_weights` the present ones must not be saved.
    """
    from pytorch_lightning.callbacks import ModelCheckpoint

    files = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    for one in files if bad_weights else ():
        one.save_on_exception = False
    last = [c.last_model_path or c.best_model_path for c in files]
    return next((f"; the last good checkpoint is {p}" for p in last if p), "")


SCALED = (
    "Gradients of a scaled loss are not looked at where the optimizer itself unscales them, so "
    "nothing is logged; give it fused=False, or train in bf16-mixed."
)


try:
    import pytorch_lightning as pl
except ModuleNotFoundError as error:
    raise missing_extra("pytorch_lightning", "lightning") from error


class GradientFlow(pl.Callback):
    """Logs how far back a model learns as it trains, and stops it at the first NaN or infinity.

    At training step 0, n, 2 n, ... all loggers of the trainer get, for each recurrent layer and
    direction as `flow/.../encoder.0`: `horizon_steps`, the first lag with rho(k) below 1/1000
    (T where there is none), `log10_rho` at the lag, and `saturated`, the largest share of a gate's
    values at its ends. For the model: `flow/gradient_norm` before clipping, `flow/clip_rate` over
    the steps since the last record where something clips, `flow/update/...` =
    ||delta theta|| / ||theta|| of every parameter, and `flow/update_spread`, the largest of the
    matrices' over the smallest.

    It measures the first eight rows of the training batch (of ragged ones, the longest), without
    the masks of training, in the weights' dtype, with the gradients of that step. It warns once of
    what cannot be measured, and logs the rest. Of several processes only the first measures its
    rows and logs.

    A loss, gradient or weight that is not finite raises `NotFiniteError` before any checkpoint of
    that state is written. A step in which a scaled loss (16-mixed) overflows is skipped; with an
    optimizer that unscales gradients itself (a fused one) only the loss is checked.

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
        for name, value in (("every", every), ("lag", 1 if lag is None else lag)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name} must be a positive number of steps, got {value!r}")
        self.every = every
        self.lag = lag
        self._flow: StepFlow | None = None
        self._warned: set[str] = set()
        self._norm: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._flow = StepFlow(pl_module, self.lag, self._warn)
        self._weights = list(pl_module.parameters())
        self._done = 0  # optimizer steps of this fit
        self._seen, self._clipped = 0, 0  # since the last record
        self._forget()
        self._stop(trainer, check_weights(pl_module))

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        if not loss.requires_grad:
            raise OptionError(
                "the loss depends on nothing that trains; unfreeze a parameter, or do not detach it"
            )
        bad = not math.isfinite(loss.sum().item())
        if is_anywhere(trainer, bad):
            # The others stop too, so that no process waits for one that has stopped.
            other = NotFiniteError("the loss of another process is NaN or infinity", "loss")
            self._stop(trainer, check_forward(pl_module, self._calls) if bad else other)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        # A loss is scaled so that half precision holds gradients; fused optimizers unscale them.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            self._warn("scaled", SCALED)
            return
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            if scaled:  # the scaler leaves this step out
                return
            self._stop(trainer, check_backward(pl_module, self._calls))
        self._norm = norm
        due = self._done % self.every == 0 and trainer.is_global_zero
        if due and self._has_gradient():
            assert self._flow is not None
            self._flow.measure()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if self._norm is None:  # a batch that only adds to the gradient, or one left out
            self._forget()
            return
        if not math.isfinite(measure_norm(self._weights)):
            self._stop(trainer, check_weights(pl_module), bad_weights=True)
        clips = clips_gradients(trainer, pl_module)
        self._seen += 1
        self._clipped += clips and self._gradient_norm() < self._norm * (1 - 1e-5)
        assert self._flow is not None
        if self._flow.measured:
            self._record(trainer, self._flow, clips)
        self._done += 1
        self._forget()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    @property
    def _calls(self) -> list[WatchedCall]:
        assert self._flow is not None
        return self._flow.calls

    def _gradient_norm(self) -> float:
        """Infinite where a gradient is not finite, and where squares overflow."""
        return measure_norm([p.grad for p in self._weights if p.grad is not None])

    def _has_gradient(self) -> bool:
        has_gradient = any(p.grad is not None for p in self._weights)
        if not has_gradient:
            self._warn("none", "No parameter has a gradient, so a training step is not logged.")
        return has_gradient

    def _forget(self) -> None:
        assert self._flow is not None
        self._flow.forget()
        self._norm = None

    def _close(self) -> None:
        if self._flow is not None:
            self._flow.close()

    def _record(self, trainer: pl.Trainer, flow: StepFlow, clips: bool) -> None:
        assert self._norm is not None
        clipped = (self._clipped, self._seen)
        values = {"gradient_norm": self._norm, **flow.values(self._done, clipped)}
        if clips:
            values["clip_rate"] = self._clipped / self._seen
        for logger in trainer.loggers:
            logger.log_metrics({f"flow/{n}": v for n, v in values.items()}, trainer.global_step)
        self._seen, self._clipped = 0, 0

    def _warn(self, rule: str, sentence: str) -> None:
        if rule not in self._warned:
            self._warned.add(rule)
            warnings.warn(sentence, stacklevel=2)

    def _stop(
        self, trainer: pl.Trainer, error: NotFiniteError | None, bad_weights: bool = False
    ) -> None:
        """End training with an error that names step and tensor; None continues."""
        if error is None:
            return
        checkpoint = name_last_good(trainer, bad_weights)
        text = f"at training step {self._done} {error}{checkpoint}"
        raise NotFiniteError(text, error.tensor, error.name, error.step)
