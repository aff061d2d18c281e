"""Our operator inside torch.onnx.export: the nodes of ONNX that `to_onnx` writes for it.

torch asks for it where it takes operators apart, so that a model of any code becomes a file: an
operator of ONNX where the cell is one, else a Scan whose body is the cell's equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.backends.call import Call, step_count
from throughtime.backends.reference import matrices, vectors
from throughtime.cell.contract import Names
from throughtime.cell.registry import find_cell
from throughtime.errors import TransformError
from throughtime.export.onnx.operators import Operator, operator_of, operator_weights
from throughtime.scan.flatten import unflatten

State = list[Tensor]


def decompose(
    cell: str, backend: str, form: Sequence[int], keep: bool, tensors: list[Tensor | None]
) -> list[Tensor]:
    """What `scan_forward` gives, by operators of ONNX and of torch.

    Raises:
        TransformError: the call has packed rows or resets.
    """
    call = unflatten(find_cell(cell), form, tensors)
    for name in ("batch_sizes", "reset"):
        if getattr(call, name) is not None:
            said = "a PackedSequence" if name == "batch_sizes" else "resets"
            raise TransformError(
                f"torch.onnx.export has no form for a recurrent layer with {said}; call the layer "
                f"with a padded batch and lengths"
            )
    found = None if call.record else operator_of(call)
    if found is not None:
        return _by_operator(call, found)
    parts = [_by_scan(call, d) for d in range(call.directions)]
    count = len(call.cell.state_names)
    finals = [torch.stack([last[k] for last, _ in parts]) for k in range(count)]
    sequences = [torch.stack([ys[k] for _, ys in parts], 2) for k in range(call.sequences)]
    return [*sequences, *finals]


def _by_operator(call: Call, found: Operator) -> list[Tensor]:
    """The operator, of which y comes as (T, D, B, H)."""
    W, R, B, P = operator_weights(call, found)
    states = [v.contiguous() for v in call.start()]
    lengths = None if call.lengths is None else call.lengths.to(torch.int32)
    inputs = [call.x, W, R, B, lengths, *states]
    T, D, rows, H = step_count(call), call.directions, call.rows, call.hidden_size
    attributes: dict[str, Any] = {"hidden_size": H, **found.attributes}
    attributes["direction"] = "forward" if D == 1 else "bidirectional"
    if "activations" in attributes:
        attributes["activations"] = [attributes["activations"]] * D
    y, *finals = torch.onnx.ops.symbolic_multi_out(
        found.op, inputs if P is None else [*inputs, P], attributes,
        dtypes=[call.x.dtype] * (1 + found.states),
        shapes=[[T, D, rows, H], *[[D, rows, H]] * found.states],
    )  # fmt: skip
    if call.lengths is not None:  # a row without steps stays where it started
        none = (call.lengths == 0).unsqueeze(-1)
        finals = [torch.where(none, s, v) for s, v in zip(states, finals, strict=True)]
    return [y.transpose(1, 2), *finals]


def _by_scan(call: Call, d: int) -> tuple[State, State]:
    """One direction's last states (B, width) and its sequences (T, B, width).

    Products with x are there for all steps at once; what a step reads comes in one fixed order.
    """
    names, scanned = _scanned(call, d)
    weights = call.weights[d]
    shared = {n: v for n, v in weights.items() if n not in ("weight_ih", "bias_ih")}
    count, sequences = len(call.cell.state_names), call.sequences

    def combine(*given: Tensor) -> list[Tensor]:
        old, rest = list(given[:count]), given[count:]
        here = dict(zip(names, rest, strict=False))
        own = dict(zip(shared, rest[len(names) :], strict=True))
        new = _step(call._replace(weights=(own,)), d, old, here)
        shown = new[:sequences]
        if "alive" in here:
            shown = [torch.where(here["alive"], v, 0.0) for v in shown]
            new = [torch.where(here["alive"], v, o) for v, o in zip(new, old, strict=True)]
        return [*(v.clone() for v in new), *(v.clone() for v in shown)]

    if d:
        scanned = [v.flip(0) for v in scanned]
    starts = [v[d].contiguous() for v in call.start()]
    carry: Callable[..., Any] = torch.ops.higher_order.scan
    found = carry(combine, starts, scanned, tuple(shared.values()))
    ys = list(found[count:])
    return list(found[:count]), [v.flip(0) for v in ys] if d else ys


def _scanned(call: Call, d: int) -> tuple[list[str], list[Tensor]]:
    """What is walked over, (T, B, ...), and its names."""
    weights, layout = call.weights[d], call.cell.layout
    found: dict[str, Tensor] = {}
    if layout.input_gates:
        found["Wx"] = torch.nn.functional.linear(
            call.x, weights["weight_ih"], weights.get("bias_ih")
        )
    found |= {name: (call.inputs or {})[name] for name in layout.inputs}
    for k, mask in enumerate(call.zoneout or ()):
        found[f"kept {k}"] = mask[d]
    if call.lengths is not None or not found:
        steps = torch.arange(step_count(call), device=call.x.device).unsqueeze(1)
        ends = call.x.new_full((call.rows,), step_count(call), dtype=torch.int64)
        alive = steps < (ends if call.lengths is None else call.lengths)
        found["alive"] = alive.unsqueeze(-1)
    return list(found), list(found.values())


def _step(call: Call, d: int, old: State, here: dict[str, Tensor]) -> State:
    """The cell's own equations at one step; `call` has the weights of this direction alone."""
    cell = call.cell
    a = {name: here[name] for name in cell.layout.inputs}
    if "Wx" in here:
        gates = here["Wx"].split(call.hidden_size, -1)
        a |= dict(zip(cell.layout.input_gates, gates, strict=True))
    mask = None if call.recurrent_mask is None else call.recurrent_mask[d : d + 1]
    one = call._replace(recurrent_mask=mask)
    named = Names("s", dict(zip(cell.state_names, old, strict=True)))
    new = list(cell.step(Names("a", a), matrices(one, 0), named, vectors(one, 0)))
    if call.zoneout is None:
        return new
    kept = [here[f"kept {k}"] for k in range(len(old))]
    return [m * o + (1 - m) * n for m, o, n in zip(kept, old, new, strict=True)]
