"""Which of torch's transforms a call stands under."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether torch.jit.trace, or what rests on it, writes down what is computed."""
    return torch._C._get_tracing_state() is not None


def no_rule() -> str | None:
    """Why a kernel with one derivative, and none in forward mode, cannot be called; or None."""
    if torch.autograd.forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled():
        return "compiled kernels have no forward-mode derivative"
    if not torch._C._functorch.get_dynamic_layer_stack_depth():
        return None
    kinds = torch._C._functorch.TransformType
    levels = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    if kinds.Jvp in levels:
        return "compiled kernels have no forward-mode derivative"
    if kinds.Functionalize in levels:
        return "functionalize has no rule for the derivative of compiled kernels"
    if levels.count(kinds.Grad) > 1:
        return "compiled kernels have one derivative below torch.func, not one of another"
    return None
