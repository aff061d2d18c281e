"""Batched gradients, which torch still makes by its older vmap: `is_grads_batched`, Jacobians.

It has no rules for operators in Python, and forgets the graph of an autograd function, so the
entries are taken apart here, above both. Its levels are counted by the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Values = Sequence[Tensor | None]


def is_batched(values: Values) -> bool:
    """Whether one of these stands for many, as the older vmap writes it."""
    return any(v is not None and torch._C._functorch.is_legacy_batchedtensor(v) for v in values)


def for_each(function: Callable[[Values], Sequence[Tensor]], values: Values) -> list[Tensor]:
    """The function once for each entry of the innermost level, its results batched again."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # What has no dimension at this level is given one of a single entry.
    opened = [v if v is None else torch._remove_batch_dim(v, level, 1, 0) for v in values]
    count = max(len(v) for v in opened if v is not None)
    torch._C._vmapmode_decrement_nesting()
    try:
        found = [
            function([v if v is None else v[i % len(v)] for v in opened]) for i in range(count)
        ]
        stacked = [torch.stack(v) for v in zip(*found, strict=True)]
    finally:
        torch._C._vmapmode_increment_nesting()
    return [torch._add_batch_dim(v, 0, level) for v in stacked]
