"""Truncated back-propagation through time: a long batch in windows of k steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from throughtime.errors import OptionError

if TYPE_CHECKING:
    from throughtime.layers.batch import Batch
    from throughtime.layers.border import Border
    from throughtime.layers.sequence import SequenceLayer


@dataclass(frozen=True)
class Window:
    """Some steps of a batch.

    Attributes:
        steps: which steps of the batch these are, for cutting targets alike.
        outputs: the layer's outputs for them, in the layout of x.
        state: each row's state after them, detached; what `state` takes.
    """

    steps: slice
    outputs: Any
    state: Any


def windows(
    layer: SequenceLayer, x: Any, k: int, state: Any = None, *, lengths: Any = None,
    reset: Any = None, **given: Any,
) -> Iterator[Window]:  # fmt: skip
    """Run a batch in windows of k steps, the state carried and detached between them.

    A sequence keeps the one mask of its recurrent dropout over all windows.

    Args:
        layer: the layer, of one direction and without dilation.
        x: a padded batch in the layer's layout.
        k: steps a window, and so the furthest that a gradient goes back.
        state, lengths, reset, given: as the layer's own call takes them.

    Returns:
        An iterator of a `Window` each; call backward on its loss before asking for the next.

    Raises:
        OptionError: the layer cannot be cut in time, or k is no positive integer.

    Source: Williams and Peng, An Efficient Gradient-Based Algorithm for On-Line Training of
    Recurrent Network Trajectories (1990); here k1 = k2 = k.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise OptionError(f"k must be a positive number of steps, got {k!r}")
    if layer.directions == 2 or set(layer.dilations) != {1}:
        raise OptionError(
            "windows cut a sequence in time, which a bidirectional or dilated layer does not "
            "survive; use bidirectional=False and dilation=1"
        )
    batch, border = layer.enter(x, state, lengths=lengths, reset=reset, **given)
    if batch.batch_sizes is not None or border.packed is not None:
        raise OptionError("windows take a padded x with lengths, not a PackedSequence")
    return _cut(layer, batch, border, k)


def _cut(layer: SequenceLayer, batch: Batch, border: Border, k: int) -> Iterator[Window]:
    """The windows of a batch, one after the other."""
    batch = layer.with_recurrent_masks(batch)
    carried = batch.state
    for start in range(0, batch.x.shape[0], k):
        steps = slice(start, min(start + k, batch.x.shape[0]))
        part = batch._replace(
            x=batch.x[steps],
            reset=None if batch.reset is None else batch.reset[steps],
            lengths=None if batch.lengths is None else (batch.lengths - start).clamp(0, k),
            inputs=None if batch.inputs is None else {n: v[steps] for n, v in batch.inputs.items()},
        )
        y, results = layer.carry(part._replace(state=carried))
        carried = tuple(tuple(v.detach() for v in r.final) for r in results)
        yield Window(steps, border.output(y), layer.leave_state(carried, border))
