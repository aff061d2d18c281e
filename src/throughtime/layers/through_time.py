"""Back-propagation through time: truncated, in windows of k steps; and written out, unrolled.

The unrolled layer is an explicit feed-forward network, for teaching and as an oracle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from throughtime.cell.contract import Names
from throughtime.cell.layout import WeightMatrix
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import align
from throughtime.layers.checks import (
    check_lengths,
    check_reset,
    check_size,
    check_starts,
    is_readable,
)
from throughtime.layers.layer import Passage
from throughtime.layers.options import Options
from throughtime.torch_private import base_of, version_of

if TYPE_CHECKING:
    from throughtime.layers import SequenceLayer
    from throughtime.layers.batch import Batch, Border, States


@dataclass(frozen=True)
class Window:
    """Some steps of a batch.

    Attributes:
        steps: the steps of the batch, for cutting targets alike.
        outputs: the layer's outputs for them, in the layout of x.
        state: each row's state after them, detached, as the layer takes it.
    """

    steps: slice
    outputs: Any
    state: Any


def windows(
    layer: SequenceLayer, x: Any, k: int, state: Any = None, *,
    encode: Callable[[Tensor], Tensor] | None = None, lengths: Any = None, starts: Any = None,
    reset: Any = None, **options: Any,
) -> Iterator[Window]:  # fmt: skip
    """Run a batch in windows of k steps, the state carried and detached between them.

    Recurrent dropout draws one mask a sequence, for all windows.

    Args:
        layer: the layer, of one direction and without dilation.
        x: a padded batch in the layer's layout; with `encode` whatever that takes, (T, B, ...),
            with batch_first (B, T, ...), or the tokens (T,) of one sequence.
        k: steps a window, and so the most steps that a gradient goes back.
        encode: makes the layer's x of the steps of a window, (k, B, ...) to (k, B, I): an
            embedding, say, or any module or function of each step alone. It is called for every
            window, so that each has its graph and current weights.
        state, lengths, starts, reset, options: as the layer's call takes them.

    Returns:
        An iterator over `Window`s; call backward on one's loss before taking the next.

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
    if encode is not None and not callable(encode):
        raise TypeError(f"encode must be a function of steps or None, got {encode!r}")
    if encode is None:
        cut: _Entered | _Encoded = _Entered(
            layer, x, state, lengths=lengths, reset=reset, **options
        )
    else:
        cut = _Encoded(layer, x, state, encode, lengths=lengths, reset=reset, **options)
    if starts is not None:
        starts = check_starts(starts, cut.ends, cut.steps, cut.rows, cut.device)
    return _run(layer, cut, k, starts)


def _run(
    layer: SequenceLayer, cut: _Entered | _Encoded, k: int, starts: Tensor | None
) -> Iterator[Window]:
    """Run and yield the windows, one after the other."""
    carried: States | None = None
    masks: tuple[Tensor | None, ...] | None = None
    for first in range(0, cut.steps, k):
        steps = slice(first, min(first + k, cut.steps))
        batch, border = cut(steps)
        if cut.ends is not None:
            batch = batch._replace(lengths=(cut.ends - first).clamp(0, steps.stop - first))
        if starts is not None:
            batch, border = align(batch, border, (starts - first).clamp(0, steps.stop - first))
        if first:
            batch = batch._replace(state=carried, recurrent_masks=masks)
        else:
            batch = layer.with_recurrent_masks(batch)
            masks = batch.recurrent_masks
        y, results = layer.carry_call(batch)
        carried = tuple(tuple(v.detach() for v in r.final) for r in results)
        yield Window(steps, border.output(y), layer.leave_state(carried, border))


class _Entered:
    """A batch whose x is given whole, cut in time."""

    def __init__(self, layer: SequenceLayer, x: Any, state: Any, **options: Any) -> None:
        self.batch, self.border = layer.enter(x, state, **options)
        if self.border.packed is not None:
            raise OptionError("windows take a padded x with lengths, not a PackedSequence")
        self.steps, self.rows = self.batch.x.shape[:2]
        self.ends, self.device = self.batch.lengths, self.batch.x.device
        self.x = _Source(self.batch.x)
        self.inputs = {n: _Source(v) for n, v in (self.batch.inputs or {}).items()}

    def __call__(self, steps: slice) -> tuple[Batch, Border]:
        batch = self.batch._replace(
            x=self.x.read(steps),
            reset=None if self.batch.reset is None else self.batch.reset[steps],
            inputs=self.batch.inputs and {n: v.read(steps) for n, v in self.inputs.items()},
        )
        return batch, self.border


class _Encoded:
    """A batch that is encoded window by window."""

    def __init__(
        self, layer: SequenceLayer, x: Any, state: Any, encode: Callable[[Tensor], Any], *,
        lengths: Any, reset: Any, inputs: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(x, Tensor) or not x.dim():
            raise TypeError(
                f"x must be a tensor whose steps encode takes, (T, B, ...) or with batch_first "
                f"(B, T, ...), got {f'{x!r}' if isinstance(x, Tensor) else type(x).__name__}"
            )
        batched = x.dim() > 1
        self.time = 1 if layer.batch_first and batched else 0
        self.steps = x.shape[self.time]
        self.rows = x.shape[1 - self.time] if batched else 1
        self.device = x.device
        self.ends = None
        if lengths is not None:
            self.ends = check_lengths(lengths, self.steps, self.rows, self.device)
        if reset is not None:
            reset = check_reset(reset, tuple(x.shape[:2]))
        self.layer, self.encode = layer, encode
        self.x, self.state, self.reset, self.inputs = x, state, reset, inputs

    def __call__(self, steps: slice) -> tuple[Batch, Border]:
        x, state = self.encode(self._cut(self.x, steps)), None if steps.start else self.state
        if not isinstance(x, Tensor):
            raise TypeError(f"encode must give a tensor, got {type(x).__name__}")
        batch, border = self.layer.enter(
            x, state, reset=None if self.reset is None else self._cut(self.reset, steps),
            inputs=self.inputs and {n: self._cut(v, steps) for n, v in self.inputs.items()},
        )  # fmt: skip
        if batch.x.shape[:2] != (steps.stop - steps.start, self.rows):
            raise ShapeError(
                f"encode must give as many steps and rows as it takes, "
                f"{tuple(self._cut(self.x, steps).shape[:2])}, got {tuple(x.shape)}"
            )
        return batch, border

    def _cut(self, v: Tensor, steps: slice) -> Tensor:
        return v.narrow(self.time, steps.start, steps.stop - steps.start)


class _Source:
    """A tensor that is read window by window, and may have been computed from weights.

    Each window's backward then sends its gradient on through the graph of x, which is kept.
    """

    def __init__(self, v: Tensor) -> None:
        self.v = v
        computed = v.requires_grad and not base_of(v).is_leaf
        self.computed = computed and torch.is_grad_enabled() and is_readable(v)
        weights = _leaves(v) if self.computed else []
        self.versions = [(w, version_of(w)) for w in weights]

    def read(self, steps: slice) -> Tensor:
        part = self.v[steps]
        if not self.computed:
            return part
        if any(version_of(w) != version for w, version in self.versions):
            self.versions = []
            warnings.warn(
                f"x was computed from weights that have changed since, so from step {steps.start} "
                f"on windows read what the old ones computed; {_ENCODE}",
                stacklevel=4,
            )
        leaf = part.detach().requires_grad_()
        leaf.register_post_accumulate_grad_hook(lambda v: _hand_over(v, part))
        return leaf


_ENCODE = (
    "give windows what x was computed from, and as encode= the function that computes it, which "
    "is then called for each window"
)


def _hand_over(leaf: Tensor, part: Tensor) -> None:
    """Send the gradient of a window's x through the graph that computed x."""
    gradient, leaf.grad = leaf.grad, None
    if gradient is not None and gradient.requires_grad:
        raise OptionError(
            f"x was computed before its windows, so no second derivative goes through it; {_ENCODE}"
        )
    try:
        part.backward(gradient, retain_graph=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise OptionError(
            f"x was computed from weights that have changed since, so no gradient goes through "
            f"them any more; {_ENCODE}"
        ) from error


def _leaves(v: Tensor) -> list[Tensor]:
    """The leaves with a gradient that a tensor was computed from."""
    nodes, seen, leaves = [v.grad_fn], set(), []
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                leaves.append(node.variable)
            nodes += [n for n, _ in node.next_functions]
    return leaves


class StepNetwork(nn.Module):
    """One time step as a feed-forward network: [x_t, s_{t-1}] to [y_t, s_t].

    Attributes:
        layer: the layer whose weights it shares.
        state_size: width of all states of all layers side by side.
    """

    def __init__(self, layer: Passage) -> None:
        super().__init__()
        self.layer = layer
        self.state_size = sum(w for widths in layer.widths for w in widths)

    def forward(self, z: Tensor) -> Tensor:
        """(B, I + state_size) to (B, O + state_size)."""
        layer = self.layer
        sizes = [layer.input_size, *(w for widths in layer.widths for w in widths)]
        x, *states = z.split(sizes, -1)
        new: list[Tensor] = []
        for number, widths in enumerate(layer.widths):
            s = states[len(new) : len(new) + len(widths)]
            below, new_state = x, self._step(number, x, s)
            x = new_state[0] + below if layer.options.residual and number else new_state[0]
            new.extend(new_state)
        return torch.cat((x, *new), -1)

    def _step(self, number: int, x: Tensor, s: list[Tensor]) -> tuple[Tensor, ...]:
        """The equations of one layer, its matrices split by gate."""
        cell, hidden = self.layer.cell, self.layer.hidden_sizes[number]
        weights, layout = self.layer.weights(number, 0), self.layer.cell.layout
        a, U = {}, {}
        for i, gate in enumerate(layout.input_gates):
            rows = slice(i * hidden, (i + 1) * hidden)
            a[gate] = linear(x, weights["weight_ih"][rows], _select_rows(weights, "bias_ih", rows))
        for i, gate in enumerate(layout.recurrent_gates):
            rows = slice(i * hidden, (i + 1) * hidden)
            U[gate] = WeightMatrix(
                weights["weight_hh"][rows], _select_rows(weights, "bias_hh", rows)
            )
        for name in layout.products:
            U[name] = WeightMatrix(weights[f"weight_{name}"])
        p = {name: weights[name] for name in layout.vectors}
        state = dict(zip(cell.state_names, s, strict=True))
        return cell.step(Names("a", a), Names("U", U), Names("s", state), Names("p", p))


def _select_rows(weights: dict[str, Tensor], name: str, rows: slice) -> Tensor | None:
    return weights[name][rows] if name in weights else None


class Unrolled(nn.Module):
    """A layer over a fixed number of steps as one deep feed-forward network, the weights shared.

    Attributes:
        step: the `StepNetwork` of every time step.
    """

    def __init__(self, layer: Passage, steps: int) -> None:
        super().__init__()
        self.step = StepNetwork(layer)
        self.input_size, self.output_size = layer.input_size, layer.output_size
        self.state_size = self.step.state_size
        self._count = steps

    @property
    def steps(self) -> tuple[StepNetwork, ...]:
        """One network a time step, all the same object, so that its weights are saved once."""
        return (self.step,) * self._count

    def forward(self, z: Tensor) -> Tensor:
        """All inputs and the first state to all outputs and the last state.

        Args:
            z: (B, T I + state_size): x_1, ..., x_T side by side, then the state, layer by layer.

        Returns:
            (B, T O + state_size): y_1, ..., y_T side by side, then the last state.
        """
        T = self._count
        width = T * self.input_size + self.state_size
        if z.dim() != 2 or z.shape[-1] != width:
            raise ShapeError(
                f"{T} unrolled steps take (B, {width}): {T} x {self.input_size} inputs and "
                f"{self.state_size} of state side by side, got {tuple(z.shape)}"
            )
        *inputs, s = z.split([self.input_size] * T + [self.state_size], -1)
        outputs: list[Tensor] = []
        for step, x in zip(self.steps, inputs, strict=True):
            y, s = step(torch.cat((x, s), -1)).split([self.output_size, self.state_size], -1)
            outputs.append(y)
        return torch.cat((*outputs, s), -1)


def unroll(layer: Any, steps: int) -> Unrolled:
    """The layer as an explicit feed-forward module over `steps` time steps.

    Its gradient is that of back-propagation through time, which is defined by unrolling.

    Args:
        layer: a layer of this package, of one direction and without masks or dilation.
        steps: T, at least 1.

    Raises:
        OptionError: the layer has two directions or an option that one step cannot show.

    Source: Werbos, Backpropagation Through Time: What It Does and How to Do It (1990).
    """
    if not isinstance(layer, Passage):
        raise OptionError(f"unroll takes a layer of throughtime, got {type(layer).__name__}")
    check_size("steps", steps)
    if layer.directions == 2:
        raise OptionError("unroll shows one direction; build the layer with bidirectional=False")
    plain = Options(residual=layer.options.residual, merge=layer.options.merge)
    if layer.options != plain or layer.cell.inputs:
        raise OptionError(
            "unroll shows the equations alone; build the layer without dropouts, zoneout, "
            "dilation, learned initial state or direct inputs"
        )
    return Unrolled(layer, steps)
