"""What arrives at a layer: the gradient of a loss by its outputs, before it goes back in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.diagnosis.steps import steps_of
from throughtime.errors import OptionError
from throughtime.layers.batch import Batch, States
from throughtime.layers.merge import merged
from throughtime.layers.sequence import SequenceLayer


@dataclass(frozen=True)
class Arriving:
    """One call of a layer inside a model, and what a loss sends back to it.

    Attributes:
        batch: what the layer was given, in its own layout.
        d_outputs: (T, B, O), of the loss by the outputs of each step, paths through later steps
            of this layer aside.
        d_final: of the loss by the final state that the call gave; None where it is not used.
        d_weights: parameter's name -> gradient of the loss, all paths together.
    """

    batch: Batch
    d_outputs: Tensor
    d_final: States | None
    d_weights: dict[str, Tensor]


def arriving(layer: SequenceLayer, loss: Callable[[], Tensor], rows: int | None = None) -> Arriving:
    """Compute a loss in eval mode and see what arrives at one layer.

    Args:
        layer: a layer inside the model that the loss runs.
        loss: runs the model and gives a scalar; the layer must run in it exactly once.
        rows: only what the first so many rows of the layer's batch add; left out, all.

    Raises:
        OptionError: the layer does not run exactly once, its batch is packed, the loss is not
            finite or does not depend on it, or none of its weights trains.
    """
    seen: list[tuple[Any, Any, Any]] = []
    hook = layer.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    was_training = layer.training
    layer.eval()
    try:
        with torch.enable_grad():
            value = loss()
    finally:
        hook.remove()
        layer.train(was_training)
    if len(seen) != 1:
        raise OptionError(f"the layer must run once in the loss, it ran {len(seen)} times")
    if value.numel() != 1 or not bool(value.isfinite().all()):
        raise OptionError(f"the loss must be one finite number, got {value.tolist()!r}")
    (args, kwargs, out) = seen[0]
    whole = _of_call(layer, value, args, kwargs, out)
    return whole if rows is None else _of_rows(layer, whole, rows)


def _of_rows(layer: SequenceLayer, whole: Arriving, rows: int) -> Arriving:
    """The layer run again on a few rows alone, with the same gradients arriving at them."""
    batch, d_y = whole.batch.first_rows(rows), whole.d_outputs[:, :rows]
    d_final = whole.d_final and tuple(tuple(v[:, :rows] for v in s) for s in whole.d_final)
    weights = {n: p for n, p in layer.named_parameters() if n in whole.d_weights}
    was_training = layer.training
    layer.eval()
    try:
        with torch.enable_grad():
            y, results = layer.carry(batch)
    finally:
        layer.train(was_training)
    ends = [v for r in results for v in r.final] if d_final is not None else []
    sent = [v for s in d_final or () for v in s]
    found = torch.autograd.grad([y, *ends], [*weights.values()], [d_y, *sent], allow_unused=True)
    own = _filled([*weights.values()], found)
    return Arriving(batch, d_y, d_final, dict(zip(weights, own, strict=True)))


def _of_call(layer: SequenceLayer, loss: Tensor, args: Any, kwargs: Any, out: Any) -> Arriving:
    x, state, given = arguments(args, kwargs)
    y, final = out if isinstance(out, tuple) else (out, None)
    if not isinstance(y, Tensor):
        raise OptionError("the layer was given a PackedSequence; give it padded sequences")
    weights = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    if not weights or not loss.requires_grad:
        raise OptionError("no weight of the layer trains, or the loss depends on none; unfreeze it")
    parts = list(tensors(final))
    found = torch.autograd.grad(loss, [y, *parts, *weights.values()], allow_unused=True)
    if all(v is None for v in found[: 1 + len(parts)]):
        raise OptionError("the loss does not depend on what the layer gives")
    d_y = torch.zeros_like(y) if found[0] is None else found[0]
    batch = layer.enter(x, state, **given)[0]
    d_final = None
    finals = found[1 : 1 + len(parts)]
    if any(v is not None for v in finals):
        values = iter(_filled(parts, finals))
        d_final = layer.enter(x, alike(final, values), **given)[0].state
    if d_y.dim() == 2:
        d_y = d_y.unsqueeze(1)
    elif layer.batch_first:
        d_y = d_y.transpose(0, 1)
    own = _filled([*weights.values()], found[1 + len(parts) :])
    return Arriving(_detached(batch), d_y, d_final, dict(zip(weights, own, strict=True)))


def _filled(like: list[Any], found: tuple[Tensor | None, ...]) -> list[Tensor]:
    """The gradients found, zeros where there are none."""
    return [torch.zeros_like(v) if f is None else f for v, f in zip(like, found, strict=True)]


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """x, state and what else the batch of a call is made of, whatever its layer calls them."""
    others = ("x", "input", "state", "hx", "gradient_norms")
    given = {k: v for k, v in kwargs.items() if k not in others}
    x = args[0] if args else kwargs.get("x", kwargs.get("input"))
    state = args[1] if len(args) > 1 else kwargs.get("state", kwargs.get("hx"))
    return x, state, given


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a tuple of tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [v for part in value for v in tensors(part)]


def alike(form: Any, values: Any) -> Any:
    """The values in the form of a tuple of tuples."""
    if isinstance(form, Tensor):
        return next(values)
    return tuple(alike(part, values) for part in form)


def _detached(batch: Batch) -> Batch:
    state = batch.state
    return Batch(
        batch.x.detach(),
        None if state is None else tuple(tuple(v.detach() for v in s) for s in state),
        batch.lengths,
        batch.reset,
        batch.batch_sizes,
        batch.inputs and {n: v.detach() for n, v in batch.inputs.items()},
    )


def through_merge(layer: SequenceLayer, seen: Arriving, d: int) -> Tensor:
    """(T, B, width): what arrives at one direction's own outputs of the last layer."""
    if layer.directions == 1:
        return seen.d_outputs
    both = [s.after[0] for s in steps_of(layer, seen.batch, None)]
    T, B = seen.batch.x.shape[:2]
    y = torch.stack([v.unflatten(0, (T, B)) for v in both], 2).requires_grad_()
    with torch.enable_grad():
        out = merged(y, layer.options.merge)
    return torch.autograd.grad(out, y, seen.d_outputs)[0][:, :, d]
