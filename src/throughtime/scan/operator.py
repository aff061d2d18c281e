"""The raw operators: they compute, and refuse what they cannot be right about.

An operator of torch takes tensors and numbers alone: `flatten` makes them of a call.

Made with `Library.define`: `custom_op` loads the whole compile stack at its first call (1.1 s) and
costs three times as much a call. `register_autograd` would break every transform of torch.func
and give zeros for a jvp, so the derivative lives in autograd.py and the Autograd key holds a guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.backends import OPAQUE, OPEN, choose
from throughtime.backends.call import Call, Gradients, Result, are_plain, is_rounded, sequence_count
from throughtime.cell import find_cell
from throughtime.cells import Cell
from throughtime.errors import ShapeError, TransformError
from throughtime.torch_private import (
    AUTOCAST,
    above_autograd,
    below_autograd,
    dual_level,
    transform_depth,
    without_autocast,
    without_tangents,
)


class Form(NamedTuple):
    """Everything about a call that is no tensor and no name: how its tensor list is read.

    The last number says how many tensors the call gives: its sequences and final states.
    """

    hidden_size: int
    directions: int
    bias: int
    state: int
    initial: int
    zoneout: int
    record: int
    results: int


def flatten(call: Call) -> tuple[Form, list[Tensor | None]]:
    """The call's form and its tensors, in one fixed order; but for `norms`, which is no input."""
    bias = "bias_ih" in call.weights[0] or "bias_hh" in call.weights[0]
    form = Form(
        call.hidden_size, len(call.weights), int(bias), int(call.state is not None),
        int(call.initial is not None), int(call.zoneout is not None), int(call.record),
        sequence_count(call) + len(call.cell.state_names),
    )  # fmt: skip
    single = [call.x, call.lengths, call.reset, call.batch_sizes, call.recurrent_mask, call.clip]
    weights = [v for weights in call.weights for v in weights.values()]
    inputs = [(call.inputs or {})[n] for n in call.cell.layout.inputs]
    groups = (weights, inputs, call.state or (), call.initial or (), call.zoneout or ())
    return form, [*single, *(v for group in groups for v in group)]


def unflatten(cell: Cell, form: Sequence[int], tensors: Sequence[Tensor | None]) -> Call:
    """The call that `flatten` took apart."""
    f = Form(*form)
    rest: Iterator[Tensor] = iter(tensors[6:])  # type: ignore[arg-type]
    names = cell.layout.names(bool(f.bias))
    weights = tuple([dict(zip(names, rest, strict=False)) for _ in range(f.directions)])
    direct, count = cell.layout.inputs, len(cell.state_names)
    inputs = {name: next(rest) for name in direct}
    state, initial, zoneout = (
        tuple(islice(rest, count)) if given else None for given in (f.state, f.initial, f.zoneout)
    )
    x, lengths, reset, batch_sizes, mask, clip = tensors[:6]
    assert x is not None
    return Call(
        cell, f.hidden_size, x, weights, state, initial, lengths, reset, batch_sizes,
        inputs, mask, zoneout, bool(f.record), clip,
    )  # fmt: skip


def flatten_gradients(call: Call, grads: Gradients) -> list[Tensor | None]:
    """Gradients in the order of the call's tensors; None where there is none to be had."""
    weights = [g.get(n) for w, g in zip(call.weights, grads.weights, strict=True) for n in w]
    inputs = [grads.inputs.get(n) for n in call.cell.layout.inputs]
    state = list(grads.start) if call.state is not None else []
    initial: list[Tensor | None] = []
    if call.initial is not None:
        initial = _by_initial(call, grads)
    zoneout = [None] * len(call.zoneout or ())
    return [grads.x, *[None] * 5, *weights, *inputs, *state, *initial, *zoneout]


def _by_initial(call: Call, grads: Gradients) -> list[Tensor | None]:
    """By `initial`: from the start, unless a state is given, and from resets."""
    resets = grads.initial or (None,) * len(grads.start)
    if call.state is not None:
        return list(resets)
    starts = (v.sum(1) for v in grads.start)
    return [v if r is None else v + r for v, r in zip(starts, resets, strict=True)]


def unrounded(op: Any) -> dict[str, Callable[..., Any]]:
    """Kernels of the autocast keys for an operator: the same call with autocast off.

    So a compiler that traces under autocast and runs without it, or the other way round, chooses
    the same backend and gets the same numbers.
    """

    def kernel(key: str, device: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with without_autocast(key, device):
                return op(*args)

        return call

    return {key: kernel(key, device) for key, device in AUTOCAST}


def guarded(op: Any, name: str) -> Callable[..., list[Tensor]]:
    """The kernel of the Autograd key: pass the call on, unless a derivative would be lost."""

    def guard(*args: Any) -> list[Tensor]:
        if transform_depth():
            raise TransformError(
                f"throughtime::{name} is called below torch.func inside a compiled function, where "
                f"its derivative would be silently zero; apply the transform outside torch.compile"
            )
        tensors = [v for arg in args if isinstance(arg, list) for v in arg if torch.is_tensor(v)]
        if dual_level() >= 0 and any(
            torch.autograd.forward_ad.unpack_dual(v).tangent is not None for v in tensors
        ):
            raise TransformError(
                f"throughtime::{name} has no forward-mode derivative; call the layer itself"
            )
        with below_autograd():
            results: list[Tensor] = op(*args)
        if torch.is_grad_enabled() and any(v.requires_grad for v in tensors):
            refusing = _Refusal.apply(name, len(results), *results, *tensors)  # type: ignore[no-untyped-call]
            return list(refusing)
        return results

    return guard


class _Refusal(torch.autograd.Function):
    """Passes an op's results on and raises where their derivative would be asked for."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> Any:
        ctx.name = name
        return tuple(v.view_as(v) for v in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *d_results: Any) -> Any:
        raise TransformError(
            f"throughtime::{ctx.name} has no derivative of its own, so neither an exported program "
            f"nor a transform inside torch.compile can be trained; train the layer itself"
        )


Tensors = list[Tensor | None]

_library = torch.library.Library("throughtime", "DEF")
_library.define(
    "scan_forward(str cell, str backend, int[] form, bool keep, Tensor?[] tensors) -> Tensor[]"
)
_library.define(
    "scan_backward(str cell, str backend, int[] form, bool[] needs, Tensor?[] tensors, "
    "Tensor[] kept, Tensor?[] d_results) -> Tensor[]"
)
_library.define(
    "scan_traced(str cell, str backend, int[] form, int[] given, Tensor[] tensors) -> Tensor[]"
)
scan_forward = torch.ops.throughtime.scan_forward.default
scan_backward = torch.ops.throughtime.scan_backward.default
scan_traced = torch.ops.throughtime.scan_traced.default


def results(call: Call, backend: str) -> list[Tensor]:
    """Sequences and final states of a call as one list, for autograd to see through."""
    result: Result = OPEN[choose(call, backend).name].run(call)
    return [*result.sequences, *result.final]


def _forward(
    cell: str, backend: str, form: Sequence[int], keep: bool, tensors: Tensors
) -> list[Tensor]:
    """The op's value: fresh contiguous tensors, as the fake below promises."""
    call = unflatten(find_cell(cell), form, tensors)
    with torch.no_grad(), _alone(call):
        name = choose(call, backend).name
        if name in OPAQUE:
            result, kept = OPAQUE[name].forward(call, keep)
            if keep:  # the output too, of which the user's own may be written over
                kept = [result.sequences[0].clone(), *kept]
            return [*result.sequences, *result.final, *kept]
        values = results(call, name)
    inputs = {v.data_ptr() for v in tensors if v is not None}
    return [v.clone() if v.data_ptr() in inputs else v.contiguous() for v in values]


def _backward(
    cell: str, backend: str, form: Sequence[int], needs: Sequence[bool], tensors: Tensors,
    kept: list[Tensor], d_results: Tensors,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the tensors that need one.

    A backend with a backward pass of its own computes them, after another forward pass where none
    kept what that needs, as in exported graphs; another is run again, under autograd.
    """
    call = unflatten(find_cell(cell), form, tensors)
    with torch.no_grad(), _alone(call):
        name = choose(call, backend).name
        if name in OPAQUE:
            _check_shapes(call, d_results)
            if not kept:
                result, saved = OPAQUE[name].forward(call, True)
                kept = [result.sequences[0], *saved]
            grads = OPAQUE[name].backward(call, kept, d_results, needs[0], any(needs[1:]))
            return _asked(flatten_gradients(call, grads), tensors, needs)
    with above_autograd(), torch.enable_grad():
        leaves = [
            v.detach().requires_grad_(need) if v is not None else None
            for v, need in zip(tensors, needs, strict=True)
        ]
        call = unflatten(find_cell(cell), form, leaves)
        with _alone(call):
            return gradients(results(call, backend), leaves, d_results)


def _check_shapes(call: Call, d_results: Tensors) -> None:
    """Gradients of results have their shapes, which autograd sees to where it is asked."""
    for shape, d in zip(_result_shapes(call), d_results, strict=True):
        if d is not None and d.shape != shape:
            raise ShapeError(f"a gradient of a result must be {shape}, got {tuple(d.shape)}")


def _traced(
    cell: str, backend: str, form: Sequence[int], given: Sequence[int], tensors: list[Tensor]
) -> list[Tensor]:
    """`scan_forward` without optional tensors, which torch.jit.trace cannot write down.

    `given` says of each place, by 1 or 0, whether there is a tensor.
    """
    some = iter(tensors)
    each = [next(some) if here else None for here in given]
    return list(scan_forward(cell, backend, form, False, each))


def _asked(flat: Tensors, tensors: Tensors, needs: Sequence[bool]) -> list[Tensor]:
    """Gradients of the tensors that need one, zero where a result does not depend on it."""
    return [
        torch.zeros_like(v) if d is None else d
        for v, d, need in zip(tensors, flat, needs, strict=True)
        if need and v is not None
    ]


@contextmanager
def _alone(call: Call) -> Iterator[None]:
    """Without autocast and forward mode: the tensors of an op are rounded and have no tangents.

    The compiler asks a fake at one time and runs the op at another; both must choose the same.
    """
    rounded = (
        torch.autocast(call.x.device.type, enabled=False) if is_rounded(call.x) else nullcontext()
    )
    with without_tangents(), rounded:
        yield


def gradients(
    values: Sequence[Tensor], leaves: Sequence[Tensor | None], d_results: Sequence[Tensor | None],
    create_graph: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the leaves that want one, zero where a result does not depend on it."""
    wanted = [v for v in leaves if v is not None and v.requires_grad]
    pairs = [(y, d) for y, d in zip(values, d_results, strict=True) if d is not None]
    pairs = [(y, d) for y, d in pairs if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(v) for v in wanted]
    outputs: list[Tensor] = [y for y, _ in pairs]
    given: list[Tensor] | None = [d for _, d in pairs]
    if are_plain(d for _, d in pairs):
        # The inner product's gradient by y is d itself; handing d to `grad` would load the whole
        # compile stack at the first call (0.4 s). Many at once, as by vmap, have no other way.
        outputs, given = [torch.stack([(y * d).sum() for y, d in pairs]).sum()], None
    return list(
        torch.autograd.grad(
            outputs, wanted, given, create_graph=create_graph, materialize_grads=True,
            allow_unused=True,
        )
    )  # fmt: skip


def _result_shapes(call: Call) -> list[tuple[int, ...]]:
    widths = call.cell.widths(call.hidden_size)
    D, rows = call.directions, call.rows
    recorded = [(*call.x.shape[:-1], D, w) for w in widths[: sequence_count(call)]]
    return [*recorded, *((D, rows, w) for w in widths)]


def fake_forward(
    cell: str, backend: str, form: Sequence[int], keep: bool, tensors: Tensors
) -> list[Tensor]:
    """Tensors of the shapes that the forward operator gives."""
    call = unflatten(find_cell(cell), form, tensors)
    shapes = _result_shapes(call)
    if keep:
        with _alone(call):
            name = choose(call, backend).name
        shapes += [shapes[0], *OPAQUE[name].kept_shapes(call)] if name in OPAQUE else []
    return [call.x.new_empty(shape) for shape in shapes]


def _fake_backward(
    cell: str, backend: str, form: Sequence[int], needs: Sequence[bool], tensors: Tensors,
    kept: list[Tensor], d_results: Tensors,
) -> list[Tensor]:  # fmt: skip
    wanted = zip(tensors, needs, strict=True)
    return [torch.empty_like(v) for v, need in wanted if need and v is not None]


def _vmap(op: Any) -> Callable[..., Any]:
    """One call for each entry of the mapped dimension, stacked."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[list[Tensor], list[int]]:
        def entry(value: Any, dim: Any, i: int) -> Any:
            if isinstance(value, list):
                dims = dim if isinstance(dim, list | tuple) else [dim] * len(value)
                return [entry(v, d, i) for v, d in zip(value, dims, strict=True)]
            if dim is None:
                return value
            row = value.movedim(dim, 0)
            return row[i] if count else value.new_zeros(row.shape[1:])

        count = info.batch_size
        results = [  # of no entry the results have the shapes of any
            op(*(entry(v, d, i) for v, d in zip(args, in_dims, strict=True)))
            for i in range(max(count, 1))
        ]
        stacked = [torch.stack(v)[:count] for v in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


_library.impl("scan_traced", _traced, "CompositeImplicitAutograd")
for _op, _name, _kernel, _fake in (
    (scan_forward, "scan_forward", _forward, fake_forward),
    (scan_backward, "scan_backward", _backward, _fake_backward),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    _library.impl(_name, guarded(_op, _name), "Autograd")
    for _key, _off in unrounded(_op).items():
        _library.impl(_name, _off, _key)
    torch.library.register_fake(f"throughtime::{_name}", _fake, lib=_library)
    torch.library.register_vmap(f"throughtime::{_name}", _vmap(_op), lib=_library)
