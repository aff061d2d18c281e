"""The formulas of the layers written out: one row, one step, one matrix product at a time.

Nothing here is shared with the package but the values of the weights, read by torch's names. With
dilation d a state simply looks d steps back, and old states are kept: no folding, no batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, sigmoid, tanh
from torch.testing import assert_close

from throughtime import Recurrent

State = tuple[Tensor, ...]
Weights = dict[str, Tensor]
Step = Callable[[Tensor, State, Weights, Any, dict[str, Tensor]], State]


def _ih(x: Tensor, w: Weights) -> Tensor:
    a = w["weight_ih"] @ x
    return a + w["bias_ih"] if "bias_ih" in w else a


def _hh(v: Tensor, w: Weights, rows: slice = slice(None)) -> Tensor:
    u = w["weight_hh"][rows] @ v
    return u + w["bias_hh"][rows] if "bias_hh" in w else u


def elman(x: Tensor, s: State, w: Weights, mask: Any, given: Any) -> State:
    return (tanh(_ih(x, w) + _hh(mask * s[0], w)),)


def lstm(x: Tensor, s: State, w: Weights, mask: Any, given: Any) -> State:
    h, c = s
    i, f, g, o = (_ih(x, w) + _hh(mask * h, w)).chunk(4)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru(x: Tensor, s: State, w: Weights, mask: Any, given: Any) -> State:
    (a_r, a_z, a_n), (u_r, u_z, u_n) = _ih(x, w).chunk(3), _hh(mask * s[0], w).chunk(3)
    z = sigmoid(a_z + u_z)
    return ((1 - z) * tanh(a_n + sigmoid(a_r + u_r) * u_n) + z * s[0],)


def gru_reset_before(x: Tensor, s: State, w: Weights, mask: Any, given: Any) -> State:
    H = len(s[0])
    a_r, a_z, a_n = _ih(x, w).chunk(3)
    r = sigmoid(a_r + _hh(mask * s[0], w, slice(H)))
    z = sigmoid(a_z + _hh(mask * s[0], w, slice(H, 2 * H)))
    n = tanh(a_n + _hh(mask * (r * s[0]), w, slice(2 * H, None)))
    return ((1 - z) * n + z * s[0],)


def weights_of(layer: Recurrent, number: int, d: int) -> Weights:
    """Short name -> tensor of one layer and direction, found by the end of its name."""
    end = f"_l{number}" + ("_reverse" if d else "")
    return {n.removesuffix(end): v for n, v in layer.named_parameters() if n.endswith(end)}


def kept(share: float, *shape: int) -> Tensor:
    """1 where a number from 0 to 1 is below the share; nothing is drawn for none and all.

    Such a number has 16 bits of a draw of 64, from the lowest on, each read as with a sign.
    """
    if not 0 < share < 1:
        return torch.full(shape, share, dtype=torch.float64)
    count = math.prod(shape)
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),)).unsqueeze(1)
    parts = (draws >> torch.tensor([0, 16, 32, 48]) & 0xFFFF) ^ 0x8000
    return (parts.flatten()[:count] / 2**16 < share).double().view(shape)


def plain(
    layer: Recurrent, step: Step, x: Tensor, *, state: Any = None, lengths: Any = None,
    reset: Tensor | None = None, inputs: dict[str, Tensor] | None = None,
    masks: Sequence[Tensor] | None = None, zones: Sequence[State] | None = None,
    drops: Sequence[Tensor] | None = None, dropped: Sequence[Sequence[Tensor]] | None = None,
    merge: Callable[[list[Tensor]], Tensor] = torch.cat, residual: bool = False,
    dilations: Sequence[int] = (1, 1, 1),
) -> tuple[Tensor, Any, list[list[Tensor]]]:  # fmt: skip
    """Outputs (T, B, width), state, and every layer's sequences of every state (T, B, D, width).

    Args:
        masks: of recurrent dropout, a layer each (D, B, width).
        zones: zoneout's m, a layer each, for each state (D, T, B, width).
        drops: masks between layers, a layer but the last each (T, B, width).
        dropped: weight_hh to use, a layer and direction each.
    """
    T, B = x.shape[:2]
    lengths = [T] * B if lengths is None else [int(n) for n in lengths]
    reset = torch.zeros(T, B, dtype=torch.bool) if reset is None else reset
    states, traces = [], []
    for k, widths in enumerate(layer.widths):
        runs = []
        for d in range(layer.directions):
            w = weights_of(layer, k, d)
            if dropped is not None:
                w["weight_hh"] = dropped[k][d]
            rows = []
            for b in range(B):
                first = [w.get(f"initial_{n}", x.new_zeros(m))
                         for n, m in zip(layer.cell.state_names, widths, strict=True)]  # fmt: skip
                start = first if state is None else [v[d, b] for v in state[k]]
                rows.append(_row(
                    step, x[:, b], tuple(start), tuple(first), w, n=lengths[b], reset=reset[:, b],
                    back=d == 1, mask=1 if masks is None else masks[k][d, b], far=dilations[k],
                    zone=None if zones is None else [m[d, :, b] for m in zones[k]],
                    given={name: v[:, b] for name, v in (inputs or {}).items()},
                ))  # fmt: skip
            runs.append(rows)
        count = range(len(widths))
        traces.append([torch.stack([torch.stack([r[0][i] for r in rows], 1)
                                    for rows in runs], 2) for i in count])  # fmt: skip
        states.append(tuple(torch.stack([torch.stack([r[1][i] for r in rows])
                                         for rows in runs]) for i in count))  # fmt: skip
        below, x = x, torch.stack([
            torch.stack([merge(list(traces[-1][0][t, b])) if t < lengths[b] else
                         0 * merge(list(traces[-1][0][t, b])) for b in range(B)]) for t in range(T)
        ])  # fmt: skip
        x = x + below if residual and k else x
        x = x * drops[k] if drops is not None and k + 1 < len(layer.widths) else x
    return x, tuple(states), traces


def _row(
    step: Step, x: Tensor, start: State, first: State, w: Weights, *, n: int, reset: Tensor,
    back: bool, mask: Any, far: int, zone: Any, given: dict[str, Tensor],
) -> tuple[list[Tensor], State]:  # fmt: skip
    """One row and direction: the sequence of each state, zero behind the end, and the last."""
    T = len(x)
    after: list[State | None] = [None] * T
    for t in reversed(range(n)) if back else range(n):
        at = t + far if back else t - far
        between = range(t + 1, min(at, n - 1) + 1) if back else range(max(at, -1) + 1, t + 1)
        outside = at >= n if back else at < 0
        if any(reset[i] for i in between):
            old = first
        else:
            old = start if outside else after[at]
        new = step(x[t], old, w, mask, {name: v[t] for name, v in given.items()})
        if zone is not None:
            new = tuple(m[t] * o + (1 - m[t]) * v for m, o, v in zip(zone, old, new, strict=True))
        after[t] = new
    begins = max((t for t in range(n) if reset[t]), default=0)  # the last sequence of the row
    last = start if n == 0 else after[begins if back else n - 1]
    zero = tuple(torch.zeros_like(v) for v in first)
    return [torch.stack([(zero if s is None else s)[i] for s in after])
            for i in range(len(first))], last  # fmt: skip


def build(cell: Any, *sizes: Any, **options: Any) -> Recurrent:
    """A float64 layer with random weights; vectors and initial states are random too."""
    layer = Recurrent(cell, *sizes, dtype=torch.float64, **options)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.4)
    return layer


def random(*shape: int) -> Tensor:
    """A random float64 leaf that wants its gradient."""
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def flat(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [v for part in parts for v in flat(part)]


def agree(found: Any, expected: Any, leaves: Sequence[Tensor] = ()) -> None:
    """Same values, and same gradients of a random weighting of them by the leaves."""
    found, expected = flat(found), flat(expected)
    assert_close(found, expected, rtol=1e-11, atol=1e-11)
    if leaves:
        d = [torch.randn_like(v) for v in expected]
        assert_close(
            _gradients(found, leaves, d), _gradients(expected, leaves, d), rtol=1e-10, atol=1e-10
        )


def _gradients(y: list[Tensor], leaves: Sequence[Tensor], d: list[Tensor]) -> list[Tensor]:
    """Zero for what no output depends on."""
    pairs = [(v, d_v) for v, d_v in zip(y, d, strict=True) if v.requires_grad]
    if not pairs:
        return [torch.zeros_like(v) for v in leaves]
    outputs, d_outputs = zip(*pairs, strict=True)
    found = torch.autograd.grad(
        outputs, leaves, d_outputs, materialize_grads=True, allow_unused=True
    )
    return list(found)
