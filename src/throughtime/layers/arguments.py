"""Checks of what the constructors of layers are given."""

from __future__ import annotations

import torch

from throughtime.errors import OptionError


def check_size(name: str, size: object) -> None:
    """A positive integer."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OptionError(f"{name} must be a positive integer, got {size!r}")


def check_flags(**flags: object) -> None:
    """True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise OptionError(f"{name} must be True or False, got {flag!r}")


def check_dtype(dtype: object) -> torch.dtype | None:
    """A floating point dtype, or None for torch's default one."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise OptionError(f"dtype must be a floating point dtype of torch, got {dtype!r}")
