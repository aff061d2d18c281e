"""Where compiled code gets memory from, in the hands of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from throughtime.backends.cpu import backward_pass, forward_pass, memory, products
from throughtime.backends.cpu import block as template


@contextmanager
def memory_from(take: Callable[[int], np.ndarray]) -> Iterator[None]:
    """Every block that a call works in comes from `take`, and none is used twice."""
    for one in (forward_pass, backward_pass):
        one.template_for.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "KEPT_BYTES", -1)
        for module in (memory, template):
            patch.setattr(module, "take", lambda bytes: memory.Slab(take(bytes)))
            patch.setattr(module, "give_back", lambda block: None)
        patch.setattr(products, "fresh", take)
        yield


def full_of_nan(bytes: int) -> np.ndarray:
    """Memory whose every bit is one: NaN, read as any kind of number."""
    return np.full(bytes, 255, np.uint8)
