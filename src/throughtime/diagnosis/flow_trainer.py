"""What `GradientFlow` asks of Lightning's trainer, which is imported where it is asked."""

from __future__ import annotations

from typing import Any

from torch import nn

from throughtime.errors import NotFiniteError


def clips_gradients(trainer: Any, module: nn.Module) -> bool:
    """Whether it clips gradients, or its module does in a hook of its own."""
    from pytorch_lightning.utilities.model_helpers import is_overridden

    own: bool = is_overridden("configure_gradient_clipping", module)
    return bool(trainer.gradient_clip_val) or own


def scales_loss(trainer: Any) -> bool:
    """Whether the loss is scaled before it goes back, so that half precision holds gradients."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def unscales_itself(optimizer: Any) -> bool:
    """Whether an optimizer takes gradients of a scaled loss as they are, as fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def anywhere(trainer: Any, true: bool) -> bool:
    """Whether something is true in any of the trainer's processes, which all must ask."""
    if trainer.world_size == 1:
        return true
    found: bool = trainer.strategy.reduce_boolean_decision(true, all=False)
    return found


def elsewhere() -> NotFiniteError:
    """Of the loss of another process, so that no process waits for one that has stopped."""
    return NotFiniteError("the loss of another process is NaN or infinity", "loss")


def last_good(trainer: Any, bad_weights: bool) -> str:
    """Which checkpoint is kept, as the end of a sentence; nothing without one.

    Args:
        trainer: Lightning's.
        bad_weights: let no checkpoint be written of the weights as they are.
    """
    from pytorch_lightning.callbacks import ModelCheckpoint

    files = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    for one in files if bad_weights else ():
        one.save_on_exception = False
    last = [c.last_model_path or c.best_model_path for c in files]
    return next((f"; the last good checkpoint is {p}" for p in last if p), "")
