"""Which of torch's transforms a call stands under."""

from __future__ import annotations

import torch


def forward_mode() -> str | None:
    """Why a kernel that has no forward-mode derivative cannot be called here, or None."""
    if torch.autograd.forward_ad._current_level >= 0:
        return "compiled kernels have no forward-mode derivative"
    if torch._C._functorch.get_dynamic_layer_stack_depth():
        for level in torch._C._functorch.get_interpreter_stack() or ():
            if level.key() == torch._C._functorch.TransformType.Jvp:
                return "compiled kernels have no forward-mode derivative"
    return None
