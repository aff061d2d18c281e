"""The autograd functions over the raw ops: a derivative, and a derivative of that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from throughtime.cells.registry import registered
from throughtime.scan.form import unflatten
from throughtime.scan.raw import gradients, results, scan_backward, scan_forward


class Scan(torch.autograd.Function):
    """Value by `scan_forward`, gradient by `ScanBackward`.

    It has no `jvp`: the compiler refuses functions that define one; forward mode goes to the
    reference at the front door.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(cell: str, backend: str, form: tuple[int, ...], *tensors: Any) -> Any:
        return tuple(scan_forward(cell, backend, list(form), list(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.cell, ctx.backend, ctx.form, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *d_results: Any) -> Any:
        needs = tuple(ctx.needs_input_grad[3:])
        given = (ctx.cell, ctx.backend, ctx.form, needs)
        if torch.compiler.is_compiling():  # the compiler has no double backward to lose
            found = ScanBackward.forward(*given, *ctx.saved_tensors, *d_results)
        else:
            found = ScanBackward.apply(*given, *ctx.saved_tensors, *d_results)  # type: ignore[no-untyped-call]
        gradients = iter(found)
        return (None, None, None, *(next(gradients) if need else None for need in needs))


class ScanBackward(torch.autograd.Function):
    """Gradient by `scan_backward`; its own gradient by differentiating the reference twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str, backend: str, form: tuple[int, ...], needs: tuple[bool, ...], *tensors: Any
    ) -> Any:
        inputs, d_results = list(tensors[: len(needs)]), list(tensors[len(needs) :])
        return tuple(scan_backward(cell, backend, list(form), list(needs), inputs, d_results))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.cell, _, ctx.form, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_gradients: Any) -> Any:
        wants = ctx.needs_input_grad[4:]
        count = len(ctx.needs)
        with torch.enable_grad():
            leaves = [_leaf(v, want or need) for v, want, need in zip(
                ctx.saved_tensors, wants, (*ctx.needs, *[False] * (len(wants) - count)), strict=True
            )]  # fmt: skip
            inputs, d_results = leaves[:count], leaves[count:]
            call = unflatten(registered(ctx.cell), ctx.form, inputs)
            wanted = [v if need else None for v, need in zip(inputs, ctx.needs, strict=True)]
            first = gradients(results(call, "reference"), wanted, d_results, create_graph=True)
            asked = [v if want else None for v, want in zip(leaves, wants, strict=True)]
            found = iter(gradients(first, asked, d_gradients))
        return (None, None, None, None, *(next(found) if want else None for want in wants))


def _leaf(v: Tensor | None, wanted: bool) -> Tensor | None:
    return None if v is None else v.detach().requires_grad_(wanted)
