"""The source of NaN or infinity in one training step: the first tensor, and the first time step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import packed_mask, unpack
from throughtime.diagnosis.observe.every_state import find_first_step, walk, weigh_outputs
from throughtime.diagnosis.observe.watch import WatchedCall, choose_rows
from throughtime.errors import NotFiniteError, OptionError
from throughtime.torch_private import norms


def all_finite(values: Iterable[Tensor | None]) -> bool:
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
        if not all_finite([p.detach()]):
            return NotFiniteError(f"the weight {name} has NaN or infinity", "parameter", name)
    return None


def check_forward(model: nn.Module, calls: Sequence[WatchedCall]) -> NotFiniteError:
    """The first tensor that is not finite where the loss is not: weight, input, output or loss."""
    if error := check_weights(model):
        return error
    for call in calls:
        if not _read_data(call.x).numel():
            text = (
                f"the loss is NaN or infinity, and layer {_name_call(call)} is given no steps or "
                f"rows, x of {tuple(_read_data(call.x).shape)}; leave empty batches out"
            )
            return NotFiniteError(text, "loss", call.name)
        for what, value in (("input", call.x), ("output", call.outputs)):
            t = find_first_step(_mask_rows(call, _make_time_major(call, value)))
            if t is not None:
                return _make_error(call, f"the {what} of layer {_name_call(call)}", what, t)
    return NotFiniteError(
        "the loss is NaN or infinity, and the outputs of all recurrent layers are finite", "loss"
    )


def check_backward(model: nn.Module, calls: Sequence[WatchedCall]) -> NotFiniteError | None:
    """The first gradient that is not finite, going back, with its step; None if all are finite."""
    odd = [n for n, p in model.named_parameters() if not all_finite([p.grad])]
    if not odd:
        return None
    for call in reversed(calls):
        sent = call.d_outputs
        if sent is not None and not all_finite([sent]):
            arrived = _make_time_major(call, sent)
            t = len(arrived) - 1 - (find_first_step(arrived.flip(0)) or 0)
            what = f"the gradient sent back to the outputs of layer {_name_call(call)}"
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
            where = f"the gradient by the state of layer {one.layer} of {_name_call(call)}"
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


def _name_call(call: WatchedCall) -> str:
    return call.name or "the model"


def _make_time_major(call: WatchedCall, value: Any) -> Tensor:
    """(T, B, width) of a call's input or output in the user's layout."""
    x = call.x
    if isinstance(x, PackedSequence):
        data = value.data if isinstance(value, PackedSequence) else value
        return unpack(data, packed_mask(x.batch_sizes.to(data.device)))
    v: Tensor = value
    if v.dim() < 3:
        return v.unsqueeze(1)
    return v.transpose(0, 1) if call.layer.batch_first else v
