"""What may go straight to a backend that reads addresses: plain memory, and nothing that looks on.

All else goes through the dispatcher, or to torch's own operations (dispatch.py). Plain tensors
pay a few hundred nanoseconds for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor
from torch.nn import Parameter

from throughtime.backends.call import Call
from throughtime.torch_private import is_zero_tensor, mode_count, tracer, transform_depth

_MORE = Call._fields.index("state")
_NO_MORE = tuple(Call._field_defaults.values())
"""Of a call that gives x and weights alone."""


def is_watched() -> bool:
    """Whether a mode, a transform or a tracer of torch wants to see each operation."""
    return bool(mode_count() or transform_depth() or tracer())


def has_plain_memory(call: Call) -> bool:
    """Whether the numbers of all tensors of a call lie, as they are, where `data_ptr` says."""
    for weights in call.weights:
        for v in weights.values():
            if type(v) is not Parameter and not is_plain(v):
                return False
    if not is_plain(call.x):
        return False
    return call[_MORE:] == _NO_MORE or all(is_plain(v) for v in _others(call))


def is_plain(v: Tensor) -> bool:
    """The same of one tensor."""
    if type(v) is not Tensor and type(v) is not Parameter:
        return False
    try:
        return (v.data_ptr() != 0 or v.numel() == 0) and not v.is_neg()
    except RuntimeError:  # it has no address at all
        return False


def plain_gradients(d_results: Sequence[Tensor | None]) -> tuple[Sequence[Tensor | None], bool]:
    """Gradients with their numbers written out, and whether all of them have plain memory."""
    if are_plain(d_results):
        return d_results, True
    d_results = [None if v is None else numbers(v) for v in d_results]
    return d_results, are_plain(d_results)


def are_plain(values: Iterable[Tensor | None]) -> bool:
    """Whether all that are given have plain memory."""
    for v in values:  # a generator would take as long as all the rest
        if v is not None and not is_plain(v):
            return False
    return True


def _others(call: Call) -> Iterator[Tensor]:
    """The tensors of a call but for x and the weights."""
    for group in (call.state, call.initial, (call.inputs or {}).values(), call.zoneout):
        yield from group or ()
    for v in (call.lengths, call.reset, call.batch_sizes, call.recurrent_mask, call.clip):
        if v is not None:
            yield v


def numbers(v: Tensor) -> Tensor:
    """A tensor with a negative bit, or one of zeros alone without memory, written out."""
    if type(v) is not Tensor and type(v) is not Parameter:
        return v
    if is_zero_tensor(v):
        return v.clone()
    return v.resolve_neg() if v.is_neg() else v
