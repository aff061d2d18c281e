"""Autocast ends at the operator: what stands behind it computes in the dtype of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_KEYS = tuple(
    key
    for key in ("AutocastCPU", "AutocastCUDA", "AutocastMPS")
    if hasattr(torch._C.DispatchKey, key)
)


def unrounded(op: Any) -> dict[str, Callable[..., Any]]:
    """Kernels of the autocast keys for an operator: the same call with autocast off.

    So a compiler that traces under autocast and runs without it, or the other way round, chooses
    the same backend and gets the same numbers.
    """

    def kernel(key: str) -> Callable[..., Any]:
        off = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def call(*args: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(off):
                return op(*args)

        return call

    return {key: kernel(key) for key in _KEYS}
