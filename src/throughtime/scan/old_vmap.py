"""Batched gradients, which torch still makes by its older vmap: `is_grads_batched`, Jacobians.

It has no rules for operators in Python, and forgets the graph of an autograd function, so the
entries are taken apart here, above both. Its levels are counted by the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from throughtime.scan.plain import is_plain, numbers
from throughtime.torch_private import (
    enter_old_level,
    has_old_vmap,
    is_old_batched,
    leave_old_level,
    put_together,
    refuse_batched,
    take_apart,
    transform_depth,
)

Values = Sequence[Tensor | None]


def is_batched(values: Values) -> bool:
    """Whether one of these stands for many, as the older vmap writes it."""
    if has_old_vmap:
        return any(v is not None and is_old_batched(v) for v in values)
    if not transform_depth() and any(
        type(v) is Tensor and not is_plain(numbers(v)) for v in values
    ):
        refuse_batched()
    return False


def for_each(function: Callable[[Values], Sequence[Tensor]], values: Values) -> list[Tensor]:
    """The function once for each entry of the innermost level, its results batched again."""
    level = enter_old_level() - 1
    leave_old_level()
    # What has no dimension at this level is given one of a single entry.
    opened = [v if v is None else take_apart(v, level, 1, 0) for v in values]
    count = max(len(v) for v in opened if v is not None)
    leave_old_level()
    try:
        results = [
            function([v if v is None else v[i % len(v)] for v in opened]) for i in range(count)
        ]
        stacked = [torch.stack(v) for v in zip(*results, strict=True)]
    finally:
        enter_old_level()
    return [put_together(v, 0, level) for v in stacked]
