"""Which line of the user's a warning belongs to."""

from __future__ import annotations

import sys


def frames_to_user() -> tuple[int, bool]:
    """The user's line as `warnings` counts from the caller's; and if torch quantises below it."""
    frame, level, by_torch = sys._getframe(1), 1, False
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in ("torch", "throughtime", "typing_extensions"):
            break
        by_torch = by_torch or name.startswith("torch.ao.quantization")
        frame, level = frame.f_back, level + 1
    return level, by_torch
