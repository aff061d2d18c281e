"""What every layer offers its users beside the call itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from throughtime import backends
from throughtime.backends.call import Call
from throughtime.layers.batch import Batch, States
from throughtime.layers.border import Border, enter
from throughtime.layers.dilation import fold
from throughtime.layers.passage import Passage
from throughtime.layers.stream import Stream
from throughtime.layers.windows import Window, windows


class SequenceLayer(Passage):
    """Layers x directions of one cell over whole sequences."""

    def enter(self, x: Any, state: Any = None, **given: Any) -> tuple[Batch, Border]:
        """The user's batch, checked, in the layers' own layout; and the way back."""
        return enter(self, x, state, batch_first=self.batch_first, **given)

    def leave(self, y: Tensor, states: States, border: Border) -> Any:
        """What a call returns: outputs and state in the user's layout."""
        return border.output(y), self.leave_state(states, border)

    def leave_state(self, states: States, border: Border) -> Any:
        """The state as the layer's own call takes it."""
        return tuple(tuple(border.state(v) for v in s) for s in states)

    def stream(self, batch: int = 1, weights: torch.dtype | None = None) -> Stream:
        """This layer one step at a time, with carried state: see `Stream`."""
        return Stream(self, batch, weights)

    def windows(
        self, x: Any, k: int, state: Any = None, *,
        encode: Callable[[Tensor], Tensor] | None = None, **given: Any,
    ) -> Iterator[Window]:  # fmt: skip
        """A batch in windows of k steps, for truncated back-propagation: see `windows`."""
        return windows(self, x, k, state, encode=encode, **given)

    def trace(self, x: Any, state: Any = None, **given: Any) -> tuple[dict[str, Any], ...]:
        """Every layer's whole sequence of every state.

        Args:
            x, state, given: as the layer's own call takes them.

        Returns:
            Over layers, name -> the state after each step, (T, B, D, width) in the layout of x.
        """
        batch, border = self.enter(x, state, **given)
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
            lengths: whether the call is given lengths.
            reset: whether it is given resets.
            trace: whether it is `trace`.
        """
        kinds = {"lengths": lengths, "reset": reset, "trace": trace}
        with torch.random.fork_rng(devices=[]):  # the options draw their masks for the call
            calls = [self._example(i, steps, batch, **kinds) for i in range(len(self.widths))]
        return "\n".join(
            f"layer {i}: {backends.explain(c, self.backend)}" for i, c in enumerate(calls)
        )

    def _example(self, layer: int, T: int, B: int, lengths: bool, reset: bool, trace: bool) -> Call:
        """A layer's call for a batch of this form."""
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
