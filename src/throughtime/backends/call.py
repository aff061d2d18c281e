"""What one layer carries through time: the call every backend takes and the result it gives.

And what may go straight to a backend that reads addresses: a call with plain memory that no mode,
tracer or transform of torch looks on. All else goes through the dispatcher, or to torch's own
operations (scan/__init__.py). Plain tensors pay a few hundred nanoseconds for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from throughtime.cells import Cell
from throughtime.errors import ShapeError
from throughtime.torch_private import (
    UNKNOWN,
    dual_level,
    is_zero_tensor,
    mode_count,
    modes,
    takes_tangents,
    tracer,
    transform_depth,
    transforms,
)


class Call(NamedTuple):
    """One layer, D directions, over a whole batch of sequences; time-major.

    What torch.compile traces calls the functions below and no property: torch 2.9 knows none of a
    tuple.

    Attributes:
        cell: the equations.
        hidden_size: H, rows of each gate.
        x: (T, B, I); packed (N, I) when `batch_sizes` is given.
        weights: for each direction, name -> tensor, as `parameter_shapes` says.
        state: where the call starts, for each of the cell's states (D, B, width);
            None starts at `initial`.
        initial: where a reset goes, for each state (D, width); None is zero.
        lengths: (B,) int64, steps of each row; None means T for all.
        reset: (T, B) bool, the state goes back to `initial` before step t; in the backward
            direction between t and t-1.
        batch_sizes: (T,) int64 on the CPU, rows alive at each step of a packed x, sorted.
        inputs: name -> (T, B, width), inputs multiplied by no matrix.
        recurrent_mask: (D, B, width of the output), multiplies the state before U.
        zoneout: for each state m, (D, T, B, width): s_t = m s_{t-1} + (1 - m) s~_t; int16 where
            it is 0 or 1.
        record: give the sequence of every state, not of the output alone.
        clip: (), c: in backward the gradient of a row by its new states at a step, all of them
            side by side, is scaled to a norm of c where it is larger, before it goes on.
        norms: (T, B, D, states) that backward fills, of a padded x: the norm of each row's
            gradient by each new state, before clipping; zero after a row's end.
    """

    cell: Cell
    hidden_size: int
    x: Tensor
    weights: tuple[Mapping[str, Tensor], ...]
    state: tuple[Tensor, ...] | None = None
    initial: tuple[Tensor, ...] | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    batch_sizes: Tensor | None = None
    inputs: Mapping[str, Tensor] | None = None
    recurrent_mask: Tensor | None = None
    zoneout: tuple[Tensor, ...] | None = None
    record: bool = False
    clip: Tensor | None = None
    norms: Tensor | None = None

    @property
    def directions(self) -> int:
        """D: one (forward), or two (forward, backward)."""
        return len(self.weights)

    @property
    def rows(self) -> int:
        """B."""
        return row_count(self)

    def start(self) -> tuple[Tensor, ...]:
        """The state at the start of the call, for each state (D, B, width)."""
        return self.initial_rows() if self.state is None else self.state

    def initial_rows(self) -> tuple[Tensor, ...]:
        """`initial` for every row, for each state (D, B, width)."""
        D, B = self.directions, self.rows
        widths = self.cell.widths(self.hidden_size)
        if self.initial is None:
            return tuple(self.x.new_zeros(D, B, w) for w in widths)
        return tuple(
            v.unsqueeze(1).expand(D, B, w) for v, w in zip(self.initial, widths, strict=True)
        )

    def direction(self, d: int) -> Call:
        """One direction of the call, alone."""

        def part(group: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if group is None else tuple(v[d : d + 1] for v in group)

        mask = self.recurrent_mask
        return self._replace(
            weights=self.weights[d : d + 1], state=part(self.state), initial=part(self.initial),
            norms=None if self.norms is None else self.norms[..., d : d + 1, :],
            recurrent_mask=None if mask is None else mask[d : d + 1], zoneout=part(self.zoneout),
        )  # fmt: skip

    def in_weights_dtype(self) -> Call:
        """The same call with all that is no weight in the dtype of the weights."""
        dtype = next(iter(self.weights[0].values()), self.x).dtype

        def group(values: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if values is None else tuple(v.to(dtype) for v in values)

        return self._replace(
            x=self.x.to(dtype),
            state=group(self.state),
            initial=group(self.initial),
            inputs={n: v.to(dtype) for n, v in (self.inputs or {}).items()},
            zoneout=group(self.zoneout),
        )

    def padded(self) -> Call:
        """The same call with a padded x (T, B, I) and lengths instead of a packed x."""
        if self.batch_sizes is None:
            return self
        alive = packed_mask(self.batch_sizes.to(self.x.device))
        return self._replace(
            x=unpack(self.x, alive),
            inputs={n: unpack(v, alive) for n, v in (self.inputs or {}).items()},
            lengths=alive.sum(0),
            batch_sizes=None,
        )


def step_count(call: Call) -> int:
    """T."""
    # By its shape, which torch.jit.trace follows as it does not follow `len`.
    return (call.x if call.batch_sizes is None else call.batch_sizes).shape[0]


def row_count(call: Call) -> int:
    """B."""
    if call.batch_sizes is None:
        return call.x.shape[1]
    return int(call.batch_sizes[0]) if len(call.batch_sizes) else 0


def sequence_count(call: Call) -> int:
    """How many states' sequences the result has, the output's first."""
    return len(call.cell.state_names) if call.record else 1


_WITH_AUTOCAST: Final = frozenset(
    device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)
)


def is_rounded(x: Tensor) -> bool:
    """Whether autocast rounds products of a tensor.

    torch 2.9 does not compile the question whether a device has autocast.
    """
    device = x.device.type
    if device not in _WITH_AUTOCAST:
        if torch.compiler.is_compiling() or not torch.amp.is_autocast_available(device):
            return False
    return torch.is_autocast_enabled(device)


class Result(NamedTuple):
    """What a call gives.

    Attributes:
        sequences: (T, B, D, width) of the output, and with `record` of every state;
            (N, D, width) for a packed x. Zero after a row's end.
        final: for each state (D, B, width), each row's own last state.
    """

    sequences: tuple[Tensor, ...]
    final: tuple[Tensor, ...]


class Gradients(NamedTuple):
    """What the derivative of a call gives.

    Attributes:
        x: as the call's; None where it was not asked for.
        weights: for each direction, name -> gradient; empty where none were asked for.
        inputs: name -> gradient, as the call's.
        start: by the state at the start of the call, for each state (D, B, width).
        initial: what resets carry to `initial`, for each state (D, width); None is nothing.
    """

    x: Tensor | None
    weights: tuple[Mapping[str, Tensor], ...]
    inputs: Mapping[str, Tensor]
    start: tuple[Tensor, ...]
    initial: tuple[Tensor, ...] | None = None


PACKS = "make it with torch.nn.utils.rnn.pack_padded_sequence or pack_sequence"
"""What cures a PackedSequence that does not fit together."""


@functools.lru_cache(maxsize=16)
def check_batch_sizes(batch_sizes: bytes, N: int) -> np.ndarray:
    """Rows of the steps of a packed batch, int64, never grow; and its data has as many lines.

    Raises:
        ShapeError: they are not so.
    """
    sizes = np.frombuffer(batch_sizes, np.int64)
    wrong = (sizes < 1) | (np.diff(sizes, prepend=sizes[:1]) > 0)
    if wrong.any():
        t = int(wrong.argmax())
        raise ShapeError(
            f"batch_sizes of a PackedSequence must be positive and never grow, got {sizes[t]} at "
            f"step {t}{f' after {sizes[t - 1]}' if t else ''}; {PACKS}"
        )
    if sizes.sum() != N:
        raise ShapeError(
            f"batch_sizes of a PackedSequence must add up to the {N} lines of its data, got "
            f"{sizes.sum()}; {PACKS}"
        )
    return sizes


def packed_mask(batch_sizes: Tensor) -> Tensor:
    """(T, B) bool: the steps and rows that a packed batch holds, in its own order."""
    rows = int(batch_sizes[0]) if len(batch_sizes) else 0
    return torch.arange(rows, device=batch_sizes.device) < batch_sizes.unsqueeze(1)


def unpack(data: Tensor, alive: Tensor) -> Tensor:
    """Packed (N, ...) to padded (T, B, ...), zero where not alive."""
    return data.new_zeros(*alive.shape, *data.shape[1:]).index_put((alive,), data)


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
