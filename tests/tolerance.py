"""How close two ways to compute the same numbers must come, by dtype; equal on every machine."""

from __future__ import annotations

from typing import Final

import torch

TOLERANCE: Final = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
}
