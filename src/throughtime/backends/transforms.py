"""Which of torch's transforms a call stands under."""

from __future__ import annotations

from throughtime.torch_private import (
    UNKNOWN,
    dual_level,
    modes,
    takes_tangents,
    tracer,
    transform_depth,
    transforms,
)


def is_traced() -> bool:
    """Whether torch.jit.trace, or what rests on it, writes down what is computed."""
    return tracer() is not None


def writes_graph() -> bool:
    """Whether a mode looks on that writes operators down, which may take them apart."""
    return any(type(mode).__name__ == "ProxyTorchDispatchMode" for mode in modes())


def no_rule() -> str | None:
    """Why a kernel with one derivative, and none in forward mode, cannot be called; or None."""
    if dual_level() >= 0 and takes_tangents():
        return "compiled kernels have no forward-mode derivative"
    if not transform_depth():
        return None
    kinds = transforms()
    if kinds is None:
        return UNKNOWN
    if "Jvp" in kinds:
        return "compiled kernels have no forward-mode derivative"
    if "Functionalize" in kinds:
        return "functionalize has no rule for the derivative of compiled kernels"
    if kinds.count("Grad") > 1:
        return "compiled kernels have one derivative below torch.func, not one of another"
    return None
