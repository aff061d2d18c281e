"""Recurrent dropout and zoneout of a call: the plan with its masks, and the masks as lines."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.look import readable
from throughtime.backends.cpu.rows import Rows
from throughtime.compiler.masked import DROPOUT, NO_MASKS, Masks
from throughtime.compiler.plan import Plan, plan


def masks_of(call: Call) -> Masks:
    """Which masks a call has; most have none, and ask several times."""
    if call.recurrent_mask is None and call.zoneout is None:
        return NO_MASKS
    return Masks(call.recurrent_mask is not None, call.zoneout is not None)


def plan_of(call: Call) -> Plan:
    """The plan of a call that was not refused."""
    found = plan(call.cell, masks_of(call), call.hidden_size)
    assert isinstance(found, Plan)
    return found


def write_masks(call: Call, found: Plan, rows: Rows, lines: Tensor) -> None:
    """The masks into (D, N, inputs and masks, units padded), in the order in which rows lie."""
    for k, name in enumerate(found.mask_names, len(found.inputs)):
        mask = _mask(call, name, rows)
        units = mask.shape[-1]
        if rows.N == rows.T * rows.B:
            lines.unflatten(1, (rows.T, rows.B))[:, :, :, k, :units] = mask
        else:  # behind a row's end nothing is read
            places = torch.from_numpy(rows.lines)
            steps = places // rows.B if name != DROPOUT else torch.zeros_like(places)
            lines[:, :, k, :units] = mask[:, steps, places % rows.B]


def _mask(call: Call, name: str, rows: Rows) -> Tensor:
    """(D, T, B, units), of recurrent dropout (D, 1, B, units)."""
    D, B, dtype = call.directions, rows.B, call.x.dtype
    widths = call.cell.widths(call.hidden_size)
    if name == DROPOUT:
        assert call.recurrent_mask is not None
        return readable(name, call.recurrent_mask, (D, B, widths[0]), dtype).unsqueeze(1)
    assert call.zoneout is not None
    k = call.cell.state_names.index(name)
    mask = call.zoneout[k]
    dtype = torch.int16 if mask.dtype == torch.int16 else dtype
    return readable(f"zoneout of {name}", mask, (D, rows.T, B, widths[k]), dtype)
