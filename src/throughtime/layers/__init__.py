"""Recurrent: any cell over whole sequences, with what torch.nn's layers do not offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from throughtime import backends
from throughtime.backends.call import Call
from throughtime.cells import Cell
from throughtime.errors import OptionError
from throughtime.layers.batch import Batch, Border, States, enter, enter_norms, fold
from throughtime.layers.checks import check_counts, check_dtype, check_flags, check_size
from throughtime.layers.layer import Passage
from throughtime.layers.module import check_nothing_more, write_node
from throughtime.layers.options import Merge, Options
from throughtime.layers.stream import Stream
from throughtime.layers.through_time import Window, windows
from throughtime.scan.prepared import BACKENDS, ShortLayers, ShortWay


class SequenceLayer(Passage):
    """Layers x directions of one cell over whole sequences."""

    _short: ShortWay
    _short_kind: type[ShortWay] = ShortLayers

    def _prepare(self) -> None:
        super()._prepare()
        vars(self)["_short"] = self._short_kind()  # a user's class may override __setattr__

    @property
    def numbers(self) -> int:
        """Weights of one direction, for layers whose single steps torch may take; else 0."""
        return 0

    def _run_short(self, x: Any, state: Any) -> Any:
        """The result of a plain call by the prepared layer, or None where it does not take it."""
        start: list[Tensor] = []
        for part in () if state is None else state:
            if type(part) is not tuple and type(part) is not list:
                return None
            start += part
        result = self._short.run(self, x, start)
        if result is None:
            return None
        y, *final = result
        count = len(self.widths[0])
        states = tuple(tuple(final[i : i + count]) for i in range(0, len(final), count))
        return (y, states) if self.return_state else y

    def enter(self, x: Any, state: Any = None, **options: Any) -> tuple[Batch, Border]:
        """The user's batch, checked, in the layers' layout; and the way back."""
        return enter(self, x, state, batch_first=self.batch_first, **options)

    def leave(self, y: Tensor, states: States, border: Border) -> Any:
        """Outputs and state in the user's layout."""
        return border.output(y), self.leave_state(states, border)

    def leave_state(self, states: States, border: Border) -> Any:
        """The state as the layer's call takes it."""
        return tuple(tuple(border.state(v) for v in s) for s in states)

    def stream(self, batch: int = 1, weights: torch.dtype | None = None) -> Stream:
        """This layer one step at a time, with carried state: see `Stream`."""
        return Stream(self, batch, weights)

    def windows(
        self, x: Any, k: int, state: Any = None, *,
        encode: Callable[[Tensor], Tensor] | None = None, **options: Any,
    ) -> Iterator[Window]:  # fmt: skip
        """Run a batch in windows of k steps, for truncated back-propagation: see `windows`."""
        return windows(self, x, k, state, encode=encode, **options)

    def trace(self, x: Any, state: Any = None, **options: Any) -> tuple[dict[str, Any], ...]:
        """Every layer's sequence of every state.

        Args:
            x, state, options: as the layer's call takes them.

        Returns:
            Over layers, name -> the state after each step, (T, B, D, width) in the layout of x.
        """
        batch, border = self.enter(x, state, **options)
        names = self.cell.state_names
        results = self.carry(batch, record=True)[1]
        return tuple(
            {n: border.output(v) for n, v in zip(names, r.sequences, strict=True)} for r in results
        )

    def explain(
        self, steps: int = 16, batch: int = 1, *, lengths: bool = False, reset: bool = False,
        trace: bool = False,
    ) -> str:  # fmt: skip
        """Which backend each layer would take for such a batch, and why not those before it.

        Args:
            steps: T.
            batch: B.
            lengths: whether the call has lengths.
            reset: whether it has resets.
            trace: whether it is `trace`.
        """
        check_counts(steps=steps, batch=batch)
        kinds = {"lengths": lengths, "reset": reset, "trace": trace}
        with torch.random.fork_rng(devices=[]):  # the options draw masks
            calls = [self._example(i, steps, batch, **kinds) for i in range(len(self.widths))]
        return "\n".join(
            f"layer {i}: {backends.explain(c, self.backend)}" for i, c in enumerate(calls)
        )

    def _example(
        self, layer: int, T: int = 1, B: int = 1, *, lengths: bool = False, reset: bool = False,
        trace: bool = False,
    ) -> Call:  # fmt: skip
        """A layer's call for a batch of this form, at first one step of one row."""
        x = self._zeros(layer, T, B)
        widths = {
            n: self.cell.width(w, self.hidden_sizes[layer]) for n, w in self.cell.inputs.items()
        }
        batch = Batch(
            x,
            lengths=torch.full((B,), T, device=x.device) if lengths else None,
            reset=torch.zeros(T, B, dtype=torch.bool, device=x.device) if reset else None,
            inputs={n: x.new_zeros(T, B, w) for n, w in widths.items()},
        )
        d = self.dilations[layer]
        call = self._call(layer, batch, record=trace)
        return self._masked(fold(call, d) if d > 1 else call, d)


class Recurrent(SequenceLayer):
    """Layers x directions of a cell over whole sequences.

    Args:
        cell: the equations, an instance of a `Cell`.
        input_size: width I of the input.
        hidden_size: H of every layer, or a list with one for each.
        num_layers: L; left out, the length of `hidden_size`, or 1.
        bidirectional: run a second, backward direction.
        bias: whether W and U carry biases.
        batch_first: x and outputs are (B, T, width) instead of (T, B, width); states never are.
        merge: how two directions become one: "concat", "sum", "mean", "mul", or a function of
            the forward and the backward outputs.
        dropout: share of a layer's outputs dropped before the next, in training.
        residual: every layer after the first adds its input to its output.
        recurrent_dropout: share of the state dropped before U, one mask a sequence, in training.
        zoneout: share of units that keep their old value at a step, for all states or by name;
            in eval its mean.
        weight_dropout: share of the recurrent weights dropped, one mask a call, in training.
        dilation: h_t follows h_{t-d}; one number, or one a layer. Whole sequences only.
        learn_initial: make the state that sequences start from a parameter (zero at first).
        checkpoint_every: k, steps: training keeps every k-th state only, and backward computes
            the others again, which costs about a forward pass; None keeps all.
        clip_gradient: c: in backward, at every step, each row's gradient by all its states
            together is scaled to a norm of c where it is larger.
        return_state: return (outputs, state), or the outputs alone.
        backend: who computes it; a named backend runs or raises, "auto" chooses.

    Raises:
        CellError: the cell's equations cannot be traced.
        OptionError: an option is outside its rule.

    Source: Schuster and Paliwal, Bidirectional Recurrent Neural Networks (1997) for the two
    directions; options.py and batch.py name those of the options.
    """

    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int | Sequence[int], *,
        num_layers: int | None = None, bidirectional: bool = False, bias: bool = True,
        batch_first: bool = False, merge: Merge = "concat", dropout: float = 0.0,
        residual: bool = False, recurrent_dropout: float = 0.0,
        zoneout: float | Mapping[str, float] = 0.0, weight_dropout: float = 0.0,
        dilation: int | Sequence[int] = 1, learn_initial: bool = False,
        checkpoint_every: int | None = None, clip_gradient: float | None = None,
        return_state: bool = True, backend: str = "auto", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        dilations = tuple(dilation) if isinstance(dilation, Sequence) else (dilation,)
        options = Options(
            merge, dropout, residual, recurrent_dropout, zoneout, weight_dropout, dilations,
            learn_initial, checkpoint_every, clip_gradient,
        )  # fmt: skip
        check_size("input_size", input_size)
        check_flags(
            bidirectional=bidirectional, bias=bias, batch_first=batch_first, residual=residual,
            learn_initial=learn_initial, return_state=return_state,
        )  # fmt: skip
        super().__init__(
            cell, input_size, _check_sizes(hidden_size, num_layers),
            directions=2 if bidirectional else 1, bias=bias, options=options, backend=backend,
            device=device, dtype=check_dtype(dtype),
        )  # fmt: skip
        self.batch_first = batch_first
        self.return_state = return_state
        self.reset_parameters()

    def forward(
        self, x: Any, state: States | None = None, *nothing: None,
        lengths: Tensor | Iterable[int] | None = None,
        starts: Tensor | Iterable[int] | None = None, reset: Tensor | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        gradient_norms: Sequence[Tensor] | None = None,
    ) -> Any:  # fmt: skip
        """Carry a batch of sequences through all layers.

        Args:
            x: (T, B, I), with batch_first (B, T, I), without a batch (T, I); or a PackedSequence.
            state: the starting state, a tuple over layers of a tuple over the cell's states, each
                (D, B, width); left out, the initial state.
            lengths: (B,) the step at which each row ends, T where left out, 0 is legal; outputs
                from there on are zero.
            starts: (B,) the step at which each row begins, 0 where left out, for batches padded on
                the left: row b is the steps from starts[b] to lengths[b] - 1, and nothing before
                them is read or written.
            reset: bool, x's shape without its width: True puts the state back to the initial
                one before that step (in the backward direction, after it); (T, B) for a
                PackedSequence, in the order of the rows that were packed.
            inputs: name -> tensor as x with its own width, for cells that declare `inputs`.
            gradient_norms: a tensor a layer, (T, B, D, states) in the layout of x, that backward
                fills: the norm of each row's gradient by each state after each step, before
                clipping, zero after a row's end. Not with a PackedSequence, starts or dilation.
            nothing: for torch.onnx.export, which passes keyword defaults by position.

        Returns:
            (outputs, state), or the outputs with return_state=False: outputs as x, of width
            `output_size`; each row's own last state in the form of `state`, after a reset that
            of its last sequence.

        Raises:
            ShapeError, OptionError: an argument does not fit the layer.
        """
        if type(x) is Proxy:
            return write_node(
                self, x, state, lengths=lengths, starts=starts, reset=reset, inputs=inputs,
                gradient_norms=gradient_norms,
            )  # fmt: skip
        if nothing:
            check_nothing_more(self, nothing)
        others = lengths, starts, reset, inputs, gradient_norms
        plain = self._observer is None and not any(v is not None for v in others)
        if plain and self.backend in BACKENDS:
            result = self._run_short(x, state)
            if result is not None:
                return result
        batch, border = self.enter(
            x, state, lengths=lengths, starts=starts, reset=reset, inputs=inputs
        )
        if gradient_norms is not None:
            batch = batch._replace(norms=enter_norms(self, gradient_norms, batch, border))
        y, results = self.carry_call(batch)
        return self.leave(y, tuple(r.final for r in results), border)

    def leave(self, y: Tensor, states: States, border: Border) -> Any:
        """Outputs and state in the user's layout, or the outputs alone."""
        outputs, state = super().leave(y, states, border)
        return (outputs, state) if self.return_state else outputs

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        sizes = self.hidden_sizes
        words = [repr(self.cell), str(self.input_size), str(sizes[0] if len(sizes) == 1 else sizes)]
        if self.directions == 2:
            words += ["bidirectional=True", f"merge={self.options.merge!r}"]
        for name, usual in _USUAL.items():
            if getattr(self, name) != usual:
                words.append(f"{name}={getattr(self, name)!r}")
        default = Options()
        for name, value in vars(self.options).items():
            if name != "merge" and value != getattr(default, name):
                words.append(f"{name}={value!r}")
        return ", ".join(words)


_USUAL = {"bias": True, "batch_first": False, "return_state": True, "backend": "auto"}


def _check_sizes(hidden_size: int | Sequence[int], num_layers: int | None) -> tuple[int, ...]:
    if isinstance(hidden_size, Sequence) and not isinstance(hidden_size, str):
        sizes = tuple(hidden_size)
        if num_layers is not None and num_layers != len(sizes):
            raise OptionError(
                f"hidden_size has one number for each layer, so num_layers must be {len(sizes)} "
                f"or left out, got {num_layers}"
            )
        if not sizes:
            raise OptionError("hidden_size must have at least one number, got none")
    else:
        layers = 1 if num_layers is None else num_layers
        check_size("num_layers", layers)
        sizes = (hidden_size,) * layers
    for size in sizes:
        check_size("hidden_size", size)
    return sizes
