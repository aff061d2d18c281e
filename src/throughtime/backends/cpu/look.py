"""The look at each tensor of a call before its address is taken: machine code believes the sizes.

Weights may be another's by then, through `.data`, a parametrisation or `functional_call`, and what
autograd saved may have changed until backward. What is as it should be passes one comparison each;
what is not is brought into shape, where that changes no number, or refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter as Leaf

from throughtime.backends.call import Call
from throughtime.backends.cpu.schedule import matrix_names
from throughtime.cell.layout import parameter_shapes
from throughtime.cells import Cell
from throughtime.errors import ShapeError
from throughtime.torch_private import Guard, guard, is_zero_tensor

FLOATS = (torch.float32, torch.float64)
PLAIN = (Tensor, Leaf)


class Parameter(NamedTuple):
    """A weight as a layer's sizes ask for it.

    Attributes:
        name: as the layer has it.
        shape: of the tensor.
        word: what the region calls its address.
    """

    name: str
    shape: torch.Size
    word: str


Parameters = Mapping[int, tuple[tuple[Parameter, ...], ...]]
"""The weights of either direction in their order, by how many there are: with biases or without."""


@functools.lru_cache(maxsize=256)
def parameters_of(cell: Cell, I: int, H: int) -> Parameters:
    """What a layer of these sizes has for weights."""
    matrices = {name: f"matrix{m}" for m, name in enumerate(matrix_names(cell))}
    by_count = {}
    for bias in (False, True):
        shapes = {n: torch.Size(s) for n, s in parameter_shapes(cell, I, H, bias).items()}
        by_count[len(shapes)] = tuple(
            tuple(Parameter(n, s, f"{matrices.get(n, n)} {d}") for n, s in shapes.items())
            for d in range(2)
        )
    return by_count


def check_input(call: Call) -> Call:
    """The call with an x whose lines of numbers lie side by side."""
    x = call.x
    if not x.is_cpu or x.dtype not in FLOATS:
        raise TypeError(f"x must be {FLOATS[0]} or {FLOATS[1]} on cpu, got {x.dtype} on {x.device}")
    if x.is_neg() or is_short(x):
        x = _own("x", x)
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        x = x.contiguous()
    return call if x is call.x else call._replace(x=x)


def take_weights(call: Call, parameters: Parameters) -> tuple[Call, dict[str, int]]:
    """The call with weights as its sizes and x ask for, and their addresses by word.

    Args:
        call: whose x has been seen.
        parameters: of its layer.
    """
    dtype, addresses = call.x.dtype, {}
    for d, weights in enumerate(call.weights):
        own = parameters.get(len(weights))
        if own is None:
            return _take_own(call, parameters)
        for (wanted, shape, word), (name, v) in zip(own[d], weights.items(), strict=True):
            if (
                v.shape != shape
                or v.dtype != dtype
                or not v.is_cpu
                or not v.is_contiguous()
                or v.is_neg()
                or is_short(v)
                or name != wanted
            ):
                return _take_own(call, parameters)
            addresses[word] = v.data_ptr()
    return call, addresses


def can_read_weights(
    weights: Sequence[Tensor | None], wanted: Sequence[torch.Size], dtype: torch.dtype
) -> bool:
    """Whether the region may read all of these parameters.

    Args:
        weights: of all directions.
        wanted: shape of each.
        dtype: of their numbers.
    """
    for shape, v in zip(wanted, weights, strict=True):
        if (
            type(v) is not Leaf
            or v.shape != shape
            or v.dtype is not dtype
            or not v.is_cpu
            or not v.is_contiguous()
            or v.is_neg()
            or is_short(v)
        ):
            return False
    return True


def take_lines(v: Tensor, dtype: torch.dtype) -> int:
    """The address of a tensor whose lines of numbers lie side by side; 0 if it is not so."""
    if type(v) not in PLAIN or v.dtype != dtype or not v.is_cpu or v.stride(-1) != 1 or v.is_neg():
        return 0
    try:
        return 0 if v.numel() == 0 or is_short(v) else v.data_ptr()
    except NotImplementedError:  # many gradients at once, which have no address
        return 0


def take_whole(v: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The address of a tensor of this shape whose numbers lie side by side; 0 if it is not so."""
    return take_lines(v, dtype) if v.shape == shape and v.is_contiguous() else 0


def _take_own(call: Call, parameters: Parameters) -> tuple[Call, dict[str, int]]:
    """The same, where not all are as they should be: copied where that is all they need."""
    some = parameters.get(len(call.weights[0]), parameters[max(parameters)])
    own = {p.name: p for p in some[0]}
    copies = []
    for weights in call.weights:
        if weights.keys() != own.keys():
            raise ShapeError(
                f"the weights of this layer must be {', '.join(own) or 'none'}, "
                f"got {', '.join(weights) or 'none'}"
            )
        for name, v in weights.items():
            if v.shape != own[name].shape:
                raise ShapeError(
                    f"{name} must be {tuple(own[name].shape)} for input_size {call.x.shape[-1]} "
                    f"and hidden_size {call.hidden_size}, got {tuple(v.shape)}; give it the "
                    f"layer's shape, or build a layer of its sizes"
                )
            _check_kind(name, v, call.x.dtype)
        copies.append({name: _own(name, weights[name]).contiguous() for name in own})
    pairs = [(p.word, w[p.name]) for d, w in enumerate(copies) for p in some[d]]
    return call._replace(weights=tuple(copies)), {word: v.data_ptr() for word, v in pairs}


def check_layer(call: Call, width: int) -> Call:
    """The call with an x of this width, and with weights as its sizes ask for."""
    I = call.x.shape[-1]
    if I != width:
        raise ShapeError(f"a layer of input_size {I} cannot read the {width} numbers before it")
    return take_weights(call, parameters_of(call.cell, I, call.hidden_size))[0]


def check_product(weight: Tensor, bias: Tensor | None, width: int) -> None:
    """A linear part reads so many numbers and adds a bias to each that it gives."""
    lines = len(weight)
    checked("weight", weight, (lines, width), weight.dtype)
    if bias is not None:
        checked("bias", bias, (lines,), weight.dtype)


def checked(name: str, v: Tensor, shape: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor:
    """A tensor of this shape, if one is named, and dtype, its numbers side by side."""
    if (
        (shape is None or v.shape == shape)
        and v.dtype == dtype
        and v.is_contiguous()
        and _is_plain(v)
    ):
        return v
    return readable(name, v, shape, dtype).contiguous()


def checked_lines(
    name: str, v: Tensor, shape: tuple[int, ...] | None, dtype: torch.dtype
) -> Tensor:
    """The same, if only those of each line of units lie side by side."""
    if (
        (shape is None or v.shape == shape)
        and v.dtype == dtype
        and v.stride(-1) == 1
        and _is_plain(v)
    ):
        return v
    v = readable(name, v, shape, dtype)
    return v if v.stride(-1) == 1 or v.shape[-1] < 2 else v.contiguous()


def _is_plain(v: Tensor) -> bool:
    return v.is_cpu and not v.is_neg() and v.numel() > 0 and not is_short(v)


def readable(name: str, v: Tensor, shape: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor:
    """A tensor of this shape and dtype that torch may read, however its numbers lie."""
    if shape is not None and v.shape != shape:
        raise ShapeError(f"{name} must be {tuple(shape)} in this call, got {tuple(v.shape)}")
    _check_kind(name, v, dtype)
    return _own(name, v)


def _check_kind(name: str, v: Tensor, dtype: torch.dtype) -> None:
    if v.dtype != dtype or not v.is_cpu:
        raise TypeError(
            f"{name} must be {dtype} on cpu as the rest of its call, got {v.dtype} on {v.device}; "
            f"leave tensors as they are between a forward pass and its backward pass"
        )


def _own(name: str, v: Tensor) -> Tensor:
    """A tensor with memory for its numbers, none of them a sign or a zero that is only thought."""
    if is_zero_tensor(v):
        return torch.zeros(v.shape, dtype=v.dtype, device=v.device)
    check_whole(name, v)
    return v.resolve_neg()


def check_whole(name: str, v: Tensor) -> None:
    """Raises where a tensor's numbers lie beyond the end of its storage."""
    if is_short(v):
        raise ShapeError(
            f"{name} has {tuple(v.shape)} numbers, for which its memory of "
            f"{v.untyped_storage().nbytes()} bytes is too small; give its storage back its size"
        )


def is_short(v: Tensor) -> bool:
    """Whether a tensor's last number lies beyond the end of its storage."""
    if not v.numel():
        return False
    end = (v.storage_offset() + find_extent(v)) * v.element_size()
    return end > v.untyped_storage().nbytes()


def all_within(tensors: Sequence[Tensor], extents: Sequence[int]) -> bool:
    """Whether the storage of each tensor has so many numbers from the tensor's first one on."""
    for v, extent in zip(tensors, extents, strict=True):
        bytes = (v.storage_offset() + extent) * v.element_size()
        if v.untyped_storage().nbytes() < bytes:
            return False
    return True


def find_extent(v: Tensor) -> int:
    """Numbers from a tensor's first to its last, both among them."""
    if v.is_contiguous():
        return v.numel()
    return 1 + sum((size - 1) * step for size, step in zip(v.shape, v.stride(), strict=True))


def guard_all(tensors: Sequence[Tensor]) -> Guard:
    """`guard`, for tensors of which one may stand in several places, as for h and c at the start;
    then one must again."""
    firsts: dict[int, int] = {}
    places = [firsts.setdefault(id(v), i) for i, v in enumerate(tensors)]
    check = guard([tensors[i] for i in firsts.values()])
    if len(firsts) == len(tensors):
        return check
    first, count = places[-1], len(firsts)
    if places[:-1] == list(range(count)):  # the last one alone: a comparison more
        return lambda *others: others[-1] is others[first] and check(*others[:-1])

    def check_all(*others: Tensor) -> bool:
        same = len(others) == len(places) and all(
            others[i] is v for i, v in zip(places, others, strict=True)
        )
        return same and check(*(others[i] for i in firsts.values()))

    return check_all
