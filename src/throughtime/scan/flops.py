"""What torch's FlopCounterMode counts for the raw ops: their products, as it counts torch.nn's."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

from throughtime.cell.registry import find_cell
from throughtime.scan.flatten import unflatten
from throughtime.scan.operator import scan_backward, scan_forward
from throughtime.torch_private import counts_flops, mode_count, modes

Shape = Sequence[int]


def _products(cell: str, form: Sequence[int], shapes: Any) -> tuple[int, int]:
    """Flops of one pass of all rows through the matrices by x, and through those by the state."""
    call = unflatten(find_cell(cell), form, shapes)
    named = [pair for weights in call.weights for pair in weights.items()]
    rows = math.prod(call.x[:-1])
    of = {
        by_x: sum(2 * rows * math.prod(v) for n, v in named if len(v) == 2 and by_x == (n == _W))
        for by_x in (True, False)
    }
    return of[True], of[False]


_W = "weight_ih"


def _forward(
    cell: str, backend: str, form: Sequence[int], keep: bool, tensors: list[Any], **_: Any
) -> int:
    return sum(_products(cell, form, tensors))


def _backward(
    cell: str, backend: str, form: Sequence[int], needs: Sequence[bool], tensors: list[Any],
    kept: list[Any], d_results: list[Any], **_: Any,
) -> int:  # fmt: skip
    """By x where it is asked for, by the state always, and by the weights where any is."""
    by_x, by_state = _products(cell, form, tensors)
    by_weights = by_x + by_state if any(needs[1:]) else 0
    return by_x * needs[0] + by_state + by_weights


def tell_counters() -> None:
    """Give the formulas to each FlopCounterMode that looks on: its module is not imported here."""
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None or not mode_count():
        return
    formulas = _registered(module)
    for mode in modes():
        if counts_flops(mode, module):
            mode.counter.flop_registry.update(formulas)


@functools.cache
def _registered(module: Any) -> dict[Any, Any]:
    """The formulas as torch holds them, by operator."""
    ops = (scan_forward.overloadpacket, _forward), (scan_backward.overloadpacket, _backward)
    for op, formula in ops:
        module.register_flop_formula(op)(formula)
    return {op: module.flop_registry[op] for op, _ in ops}
