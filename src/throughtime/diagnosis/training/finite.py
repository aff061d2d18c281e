"""Where NaN or infinity came from in one training step: the first tensor, and the first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import packed_mask, unpack
from throughtime.diagnosis.observe.every_state import first_step, sent_back, walk
from throughtime.diagnosis.observe.watch import WatchedCall, rows_of
from throughtime.errors import NotFiniteError, OptionError
from throughtime.torch_private import norms


def all_finite(values: Iterable[Tensor | None]) -> bool:
    """Whether no tensor has NaN or infinity in it; one pass over them, no copy."""
    found = [v for v in values if v is not None and v.is_floating_point() and v.numel()]
    if not found:
        return True
    # The largest size of all: NaN goes through, and unlike the sum of squares it cannot overflow.
    sizes = norms(found, float("inf"))
    return bool(torch.stack([s.to(sizes[0]) for s in sizes]).isfinite().all())


def in_weights(model: nn.Module) -> NotFiniteError | None:
    """The first weight that is not finite."""
    for name, p in model.named_parameters():
        if not all_finite([p.detach()]):
            return NotFiniteError(f"the weight {name} has NaN or infinity", "parameter", name)
    return None


def in_forward(model: nn.Module, calls: Sequence[WatchedCall]) -> NotFiniteError:
    """What is not finite first on the way to a loss that is not: weight, input, output, or it."""
    if found := in_weights(model):
        return found
    for call in calls:
        if not _data(call.x).numel():
            text = (
                f"the loss is NaN or infinity, and layer {_said(call)} is given no steps or rows, "
                f"x of {tuple(_data(call.x).shape)}; leave empty batches out"
            )
            return NotFiniteError(text, "loss", call.name)
        for what, value in (("input", call.x), ("output", call.outputs)):
            t = first_step(_of_rows(call, _time_major(call, value)))
            if t is not None:
                return _at(call, f"the {what} of layer {_said(call)}", what, t)
    return NotFiniteError(
        "the loss is NaN or infinity, and the outputs of all recurrent layers are finite", "loss"
    )


def in_backward(model: nn.Module, calls: Sequence[WatchedCall]) -> NotFiniteError | None:
    """The gradient that is not finite, at the step it met first going back; None: all are."""
    odd = [n for n, p in model.named_parameters() if not all_finite([p.grad])]
    if not odd:
        return None
    for call in reversed(calls):
        sent = call.d_outputs
        if sent is not None and not all_finite([sent]):
            arrived = _time_major(call, sent)
            t = len(arrived) - 1 - (first_step(arrived.flip(0)) or 0)
            return _at(call, f"the gradient sent back to the outputs of layer {_said(call)}",
                       "gradient", t, back=True)  # fmt: skip
    for call in reversed(calls):
        if found := _through_time(call):
            return found
    text = f"the gradient of the weight {odd[-1]} has NaN or infinity"
    return NotFiniteError(text, "gradient", odd[-1])


def _through_time(call: WatchedCall) -> NotFiniteError | None:
    """The call walked again with every state kept; None where its gradients are finite."""
    try:
        rows = rows_of(call, None)
        T = len(rows.batch.x)
        y, finals, walks = walk(call.layer, rows.batch, range(T), last_only=False)
        sent = sent_back(y, finals, rows)
    except (OptionError, ValueError):
        return None
    for one in reversed(walks) if sent is not None else ():
        d = one.gradients(sent)  # type: ignore[arg-type]
        own = first_step(d.flip(0))
        if own is not None:
            t = own if one.direction else T - 1 - own
            where = f"the gradient by the state of layer {one.layer} of {_said(call)}"
            return _at(call, where, "gradient", t, back=True)
    return None


def _at(call: WatchedCall, what: str, tensor: str, t: int, back: bool = False) -> NotFiniteError:
    way = "going back first" if back else "first"
    text = f"{what} has NaN or infinity, {way} at time step {t} (counted from 0)"
    return NotFiniteError(text, tensor, call.name, t)


def _data(x: Any) -> Tensor:
    found: Tensor = x.data if isinstance(x, PackedSequence) else x
    return found


def _of_rows(call: WatchedCall, v: Tensor) -> Tensor:
    """(T, B, width), zero outside of each row, where anything may stand."""
    steps = torch.arange(len(v), device=v.device).unsqueeze(1)
    for name, inside in (("starts", torch.ge), ("lengths", torch.lt)):
        if (ends := call.given.get(name)) is not None:
            ends = torch.as_tensor(ends, device=v.device)
            v = torch.where(inside(steps, ends).unsqueeze(-1), v, 0)
    return v


def _said(call: WatchedCall) -> str:
    return call.name or "the model"


def _time_major(call: WatchedCall, value: Any) -> Tensor:
    """(T, B, width) of what a call was given or gave in the user's layout."""
    x = call.x
    if isinstance(x, PackedSequence):
        data = value.data if isinstance(value, PackedSequence) else value
        return unpack(data, packed_mask(x.batch_sizes.to(data.device)))
    found: Tensor = value
    if found.dim() < 3:
        return found.unsqueeze(1)
    return found.transpose(0, 1) if call.layer.batch_first else found
