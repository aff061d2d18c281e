"""The autograd functions over the raw ops: a derivative, and a derivative of that.

Batched gradients (`is_grads_batched`, Jacobians) torch still makes by its older vmap. It has no
rules for operators in Python, and forgets the graph of an autograd function, so the entries are
taken apart here, above both. Its levels are counted by the thread.

Outputs that backward needs are the user's own, who may write over them. torch.nn's layers keep
copies. Here backward reads the outputs themselves, and only where their version says that they are
no longer what the layer gave, computes them once more.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends import OPAQUE
from throughtime.backends.call import Call, is_plain, is_watched, numbers, plain_gradients
from throughtime.cell import find_cell
from throughtime.errors import TransformError
from throughtime.scan.operator import (
    Form,
    flatten_gradients,
    gradients,
    results,
    scan_backward,
    scan_forward,
    unflatten,
)
from throughtime.torch_private import (
    SAVED_ONE_BY_ONE,
    counts_flops,
    enter_old_level,
    has_old_vmap,
    has_saving_hooks,
    is_old_batched,
    leave_old_level,
    mode_count,
    modes,
    put_together,
    refuse_batched,
    saved_but_one,
    take_apart,
    transform_depth,
)


class Scan(torch.autograd.Function):
    """Value by `scan_forward`, gradient by `ScanBackward`.

    It has no `jvp`: the compiler refuses functions that define one; forward mode goes to the
    reference at the front door.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(cell: str, backend: str, form: tuple[int, ...], keep: bool, *tensors: Any) -> Any:
        return tuple(scan_forward(cell, backend, list(form), keep, list(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.cell, ctx.backend, ctx.form, _, *tensors = inputs
        ctx.results = Form(*ctx.form).results
        kept = output[ctx.results :]
        ctx.mark_non_differentiable(*kept)
        ctx.kept = len(kept)
        ctx.save_for_backward(*tensors, *kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *d_results: Any) -> Any:
        needs = tuple(ctx.needs_input_grad[4:])
        given = (ctx.cell, ctx.backend, ctx.form, needs, ctx.kept)
        d_results = d_results[: ctx.results]
        if torch.compiler.is_compiling():  # the compiler has no double backward to lose
            computed = ScanBackward.forward(*given, *ctx.saved_tensors, *d_results)
        else:
            computed = derivative(given, (*ctx.saved_tensors, *d_results))
        return (*[None] * 4, *placed(computed, needs))


class Direct(torch.autograd.Function):
    """The same for a plain call that no transform sees: straight to the backend, no operator.

    Looking up an operator and binding arguments for transforms takes longer than a small layer.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call, backend: str, form: tuple[int, ...], *tensors: Tensor | None
    ) -> Any:
        result, kept = OPAQUE[backend].forward(call, True)
        ctx.cell, ctx.backend, ctx.form, ctx.kept = call.cell, backend, form, len(kept) + 1
        ctx.norms = call.norms
        ctx.save_for_backward(*tensors, keep_output(result.sequences[0]), *kept)
        ctx.set_materialize_grads(False)
        return (*result.sequences, *result.final)

    @staticmethod
    def backward(ctx: Any, *d_given: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[3:]
        d_results, plain = plain_gradients(d_given)
        # A derivative of this derivative may be asked for, or many at once, or their shapes alone.
        if torch.is_grad_enabled() or not plain or is_watched():
            check_no_norms(ctx.norms)
            given = (ctx.cell.key, ctx.backend, ctx.form, needs, ctx.kept)
            some = derivative(given, (*_recall_call(ctx, len(needs)), *d_results))
            return (*[None] * 3, *placed(some, needs))
        count = len(needs)
        saved = _recall_call(ctx, count)
        call = unflatten(ctx.cell, ctx.form, saved[:count])
        if ctx.norms is not None:
            call = call._replace(norms=ctx.norms)
        grads = OPAQUE[ctx.backend].backward(
            call, saved[count:], d_results, needs[0], any(needs[1:])
        )
        flat = flatten_gradients(call, grads)
        return (*[None] * 3, *(d if need else None for d, need in zip(flat, needs, strict=True)))


def placed(some: Iterable[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients at the places that need one, None at the others."""
    gradients = iter(some)
    return [next(gradients) if need else None for need in needs]


def derivative(given: tuple[Any, ...], values: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """Gradients by `ScanBackward`, of one vector or of many at once."""
    tell_counters()
    if is_batched(values):
        return for_each(lambda entry: derivative(given, entry), values)
    return ScanBackward.apply(*given, *values)  # type: ignore[no-untyped-call, no-any-return]


def check_no_norms(norms: Tensor | None) -> None:
    """A derivative that is to be differentiated again writes no norms."""
    if norms is not None:
        raise TransformError(
            "compiled code writes no norms of gradients with create_graph=True; "
            "use backend='reference' or leave gradient_norms out"
        )


class ScanBackward(torch.autograd.Function):
    """Gradient by `scan_backward`; its own gradient by differentiating the reference twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cell: str, backend: str, form: tuple[int, ...], needs: tuple[bool, ...], kept: int,
        *tensors: Any,
    ) -> Any:  # fmt: skip
        count = len(needs)
        inputs, saved = list(tensors[:count]), list(tensors[count : count + kept])
        return tuple(
            scan_backward(
                cell, backend, list(form), list(needs), inputs, saved, list(tensors[count + kept :])
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.cell, _, ctx.form, ctx.needs, ctx.kept, *tensors = inputs
        count = len(ctx.needs)
        ctx.save_for_backward(*tensors[:count], *tensors[count + ctx.kept :])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *d_gradients: Any) -> Any:
        # What the forward pass kept says nothing that the inputs do not say.
        again = torch.is_grad_enabled()  # a third derivative may follow
        count = len(ctx.needs)
        asked = ctx.needs_input_grad[5:]
        wants = (*asked[:count], *asked[count + ctx.kept :])
        with torch.enable_grad():
            needs = *ctx.needs, *[False] * (len(wants) - count)
            leaves = [
                None if v is None else _as_leaf(v, want or need, again)
                for v, want, need in zip(ctx.saved_tensors, wants, needs, strict=True)
            ]
            inputs, d_results = leaves[:count], leaves[count:]
            call = unflatten(find_cell(ctx.cell), ctx.form, inputs)
            wanted = [v if need else None for v, need in zip(inputs, ctx.needs, strict=True)]
            first = gradients(results(call, "reference"), wanted, d_results, create_graph=True)
            leaves = [v if want else None for v, want in zip(leaves, wants, strict=True)]
            second = placed(gradients(first, leaves, d_gradients, create_graph=again), wants)
        return (*[None] * 5, *second[:count], *[None] * ctx.kept, *second[count:])


def _as_leaf(v: Tensor, wanted: bool, again: bool) -> Tensor:
    """A tensor to differentiate by, of which no other is made; `again`: with its history."""
    return v.view_as(v) if again and v.requires_grad else v.detach().requires_grad_(wanted)


Values = Sequence[Tensor | None]


def is_batched(values: Values) -> bool:
    """Whether one of these stands for many, as the older vmap writes it."""
    if has_old_vmap:
        return any(v is not None and is_old_batched(v) for v in values)
    if not transform_depth() and any(
        type(v) is Tensor and not is_plain(numbers(v)) for v in values
    ):
        refuse_batched()
    return False


def for_each(function: Callable[[Values], Sequence[Tensor]], values: Values) -> list[Tensor]:
    """The function once for each entry of the innermost level, its results batched again."""
    level = enter_old_level() - 1
    leave_old_level()
    # What has no dimension at this level is given one of a single entry.
    opened = [v if v is None else take_apart(v, level, 1, 0) for v in values]
    count = max(len(v) for v in opened if v is not None)
    leave_old_level()
    try:
        results = [
            function([v if v is None else v[i % len(v)] for v in opened]) for i in range(count)
        ]
        stacked = [torch.stack(v) for v in zip(*results, strict=True)]
    finally:
        enter_old_level()
    return [put_together(v, 0, level) for v in stacked]


def keep_output(y: Tensor) -> Tensor:
    """What is kept of the output: itself; a copy where hooks take it, which hide its version, and
    where `recall` could not pass over it."""
    if SAVED_ONE_BY_ONE and not has_saving_hooks():
        return y
    kept = y.new_empty(y.shape)
    np.copyto(kept.numpy(), y.numpy())  # torch's copy takes threads, which a forked child has not
    return kept


def recall(ctx: Any, place: int, again: Callable[[Sequence[Any]], Tensor]) -> Sequence[Any]:
    """What was saved, with the output at this place computed `again` from the rest, if need be.

    Raises:
        RuntimeError: torch's own, if a tensor of the call has been changed.
    """
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
    others = saved_but_one(ctx, place)
    return (*others[:place], again(others), *others[place:])


def _recall_call(ctx: Any, count: int) -> Sequence[Any]:
    """What `Direct` saved: `count` tensors of the call, the output, and what the backend kept."""

    def again(others: Sequence[Any]) -> Tensor:
        return compute_again(unflatten(ctx.cell, ctx.form, others[:count]), ctx.backend)

    return recall(ctx, count, again)


def compute_again(call: Call, backend: str) -> Tensor:
    """The outputs of a call."""
    with torch.no_grad():
        return OPAQUE[backend].forward(call._replace(record=False), False)[0].sequences[0]


def _count_products(cell: str, form: Sequence[int], shapes: Any) -> tuple[int, int]:
    """Flops of one pass of all rows through the matrices by x, and through those by the state."""
    call = unflatten(find_cell(cell), form, shapes)
    flops = {True: 0, False: 0}
    for name, shape in (pair for weights in call.weights for pair in weights.items()):
        if len(shape) == 2:
            flops[name == "weight_ih"] += 2 * math.prod(call.x[:-1]) * math.prod(shape)
    return flops[True], flops[False]


def _count_forward(
    cell: str, backend: str, form: Sequence[int], keep: bool, tensors: list[Any], **_: Any
) -> int:
    return sum(_count_products(cell, form, tensors))


def _count_backward(
    cell: str, backend: str, form: Sequence[int], needs: Sequence[bool], tensors: list[Any],
    kept: list[Any], d_results: list[Any], **_: Any,
) -> int:  # fmt: skip
    """By x where it is asked for, by the state always, and by the weights where any is."""
    by_x, by_state = _count_products(cell, form, tensors)
    by_weights = by_x + by_state if any(needs[1:]) else 0
    return by_x * needs[0] + by_state + by_weights


def tell_counters() -> None:
    """Give each FlopCounterMode that looks on the flops of the raw ops, counted as torch.nn's are.

    Its module is not imported here.
    """
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None or not mode_count():
        return
    formulas = _registered(module)
    for mode in modes():
        if counts_flops(mode, module):
            mode.counter.flop_registry.update(formulas)


@functools.cache
def _registered(module: Any) -> dict[Any, Any]:
    """The formulas as torch holds them, by operator."""
    ops = (scan_forward, _count_forward), (scan_backward, _count_backward)
    for op, formula in ops:
        module.register_flop_formula(op.overloadpacket)(formula)
    return {op.overloadpacket: module.flop_registry[op.overloadpacket] for op, _ in ops}
