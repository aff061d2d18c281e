"""torch.nn's layer and ours side by side: the same options, weights, inputs and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import throughtime

KINDS = ("RNN", "LSTM", "GRU")
FORMS = ("batched", "batch_first", "alone", "alone, batch_first", "packed", "packed, unsorted")
T, B, I, H = 4, 3, 3, 5
LENGTHS = {"packed": [4, 2, 1], "packed, unsorted": [2, 4, 1]}


@dataclass(frozen=True)
class Case:
    """One row of the table of options."""

    kind: str
    form: str = "batched"
    state: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, module: Any, **more: Any) -> Any:
        """The layer of this row, from torch.nn or from throughtime, both in double precision."""
        first = self.form.endswith("batch_first") or self.form == "packed, unsorted"
        return getattr(module, self.kind)(
            I, H, batch_first=first, dtype=torch.float64, **self.options, **more
        )

    def pair(self, backend: str = "auto") -> tuple[nn.Module, nn.Module]:
        """torch's layer and ours with its weights."""
        theirs = self.build(nn)
        ours = self.build(throughtime, backend=backend)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    def draw(self) -> tuple[Any, Any]:
        """A random input of this row's form, and a state or None."""
        shape = {"batched": (T, B, I), "batch_first": (B, T, I)}.get(self.form, (T, I))
        rows: tuple[int, ...] = () if self.form.startswith("alone") else (B,)
        if self.form in LENGTHS:
            padded = torch.randn(T, B, I, dtype=torch.float64)
            sorted_ = self.form == "packed"
            x: Any = pack_padded_sequence(padded, LENGTHS[self.form], enforce_sorted=sorted_)
        else:
            x = torch.randn(shape, dtype=torch.float64)
        if not self.state:
            return x, None
        layers = self.options.get("num_layers", 1) * (1 + self.options.get("bidirectional", False))
        width = self.options.get("proj_size") or H
        h, c = (torch.randn(layers, *rows, w, dtype=torch.float64) for w in (width, H))
        return x, ((h, c) if self.kind == "LSTM" else h)


def table(kind: str, layers: int, bidirectional: bool) -> Iterator[Case]:
    """Every row of the table for a kind, a number of layers, and one or two directions."""
    own = {"RNN": ("nonlinearity", ("tanh", "relu")), "LSTM": ("proj_size", (0, 2))}
    name, values = own.get(kind, ("bidirectional", (bidirectional,)))
    for bias, value, form, state in itertools.product((True, False), values, FORMS, (False, True)):
        options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, name: value}
        yield Case(kind, form, state, options)


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in a result or an input, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [] if value is None else [v for part in value for v in tensors(part)]


def leaves(x: Any, hx: Any) -> tuple[Any, Any, list[Tensor]]:
    """Fresh copies of an input and a state that gather gradients, and these copies as a list."""
    found: list[Tensor] = []

    def fresh(v: Any) -> Any:
        if v is None:
            return None
        if isinstance(v, PackedSequence):
            return PackedSequence(fresh(v.data), *v[1:])
        if isinstance(v, tuple):
            return tuple(fresh(part) for part in v)
        found.append(v.detach().clone().requires_grad_())
        return found[-1]

    return fresh(x), fresh(hx), found


def run(layer: nn.Module, x: Any, hx: Any, d_results: list[Tensor] | None = None) -> list[Tensor]:
    """Results of a call, then the gradients of its input, state and weights.

    Args:
        d_results: gradients into outputs and final states; drawn into the list when it is empty.
    """
    x, hx, found = leaves(x, hx)
    results = tensors(layer(x, hx))
    if d_results is not None and not d_results:
        d_results += [torch.randn_like(v) for v in results]
    wanted = [*found, *layer.parameters()]
    d_outputs = d_results or [torch.ones_like(v) for v in results]
    return [*results, *torch.autograd.grad(results, wanted, d_outputs)]
