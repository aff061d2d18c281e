"""Direct inputs as compiled code reads them, and its gradients as those of the call's tensors.

A row of a step has a line of units for each input; of one number a row, each of hidden_size units
has the same.
Masks, which each direction has of its own, are lines behind those.
Rows lie one behind the other over all steps, in the order in which both directions walk them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.gradients import as_given
from throughtime.backends.cpu.look import readable
from throughtime.backends.cpu.masks import masks_of, write_masks
from throughtime.backends.cpu.memory import lend
from throughtime.backends.cpu.rows import Rows
from throughtime.backends.cpu.sizes import target, whole_vectors
from throughtime.backends.cpu.widths import widths_for
from throughtime.compiler.plan import Plan


def input_lines(call: Call, found: Plan, rows: Rows) -> Tensor | None:
    """(D, N, inputs and masks, H padded to whole vectors); None without any."""
    if not found.lines:
        return None
    D, lanes = call.directions, target().lanes(8 * call.x.element_size())
    widths = widths_for(call.cell, call.hidden_size, masks_of(call))
    line = whole_vectors(widths.line, lanes)
    own = D if found.masks else 1
    lines = lend(call.x, (own, rows.N, len(found.lines), line))
    if {line} != set(widths.units):  # units behind the last are zeros
        lines.zero_()
    for k, (name, units) in enumerate(input_units(call, found).items()):
        v = (call.inputs or {})[name]
        width = call.cell.width(call.cell.inputs[name], call.hidden_size)
        v = readable(f"input {name}", v, (*call.x.shape[:-1], width), call.x.dtype)
        lines[:, :, k, :units] = _walked(call, rows, v)
    write_masks(call, found, rows, lines)
    return lines.expand(D, -1, -1, -1)


def input_units(call: Call, found: Plan) -> dict[str, int]:
    """How many units the line of each input has."""
    widths = widths_for(call.cell, call.hidden_size, masks_of(call))
    units = dict(zip(found.widths.names, widths.units, strict=True))
    nodes = zip(found.input_names, found.inputs, strict=True)
    return {name: units[found.widths.of[node]] for name, node in nodes}


def _walked(call: Call, rows: Rows, v: Tensor) -> Tensor:
    """The call's rows and steps to (N, width); padding is never looked at."""
    if call.batch_sizes is not None:
        return v
    if call.lengths is None:
        return v.reshape(rows.N, v.shape[-1])
    return v.reshape(-1, v.shape[-1])[torch.from_numpy(rows.lines)]


def by_inputs(call: Call, found: Plan, rows: Rows, d_lines: Tensor | None) -> dict[str, Tensor]:
    """(D, N, inputs and masks, H padded) to the gradient by each input, in its own shape."""
    if d_lines is None or call.inputs is None:
        return {}
    total = d_lines[0] if len(d_lines) == 1 else d_lines[0] + d_lines[1]
    grads = {}
    for k, (name, units) in enumerate(input_units(call, found).items()):
        line = total[:, k, :units]
        one = call.inputs[name].shape[-1] == 1
        grads[name] = as_given(call, rows, sum_units(line) if one else line.contiguous())
    return grads


def sum_units(line: Tensor) -> Tensor:
    """(N, H) to (N, 1), by halves: the order of the sum follows from H alone."""
    while (width := line.shape[-1]) > 1:
        half = (width + 1) // 2
        folded = line[:, : width - half] + line[:, half:]
        line = torch.cat([folded, line[:, width - half : half]], -1)
    return line.contiguous()
