"""The laws that every cell must obey, whoever computes it: each a function that raises.

A law takes `make(**forced) -> Recurrent`, which builds a float64 layer of the cell under test with
random weights (and whatever options are tested), `forced` options winning. Cells that declare
`inputs` are given random ones. Two computations of the same thing may differ by TOLERANCE; where
the law is about bits it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.testing import assert_close

from throughtime.backends import BACKENDS
from throughtime.errors import BackendError
from throughtime.layers.recurrent import Recurrent
from throughtime.trial import check_gradients, trial

Make = Callable[..., Recurrent]
TOLERANCE: Final = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Relative and absolute, by dtype, equal on every machine."""
WHOLE: Final[dict[str, Any]] = {"bidirectional": False, "dilation": 1}
"""Options of a layer that can be cut in time."""


def _same(a: Any, b: Any, message: str) -> None:
    tolerance = TOLERANCE[torch.float64]
    assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text: f"{message}: {text}")


def gradients_are_right(make: Make) -> None:
    """Every gradient equals the finite difference, along random directions."""
    layer = make()
    check_gradients(layer, trial(layer, 3, 2))


def split_is_whole(make: Make) -> None:
    """A sequence cut at any step, its state handed on, gives what the whole gives."""
    layer = make(**WHOLE)
    data = trial(layer, 5, 3)
    y, state = data.run(layer)
    for cut in range(1, 5):
        first, middle = data[:cut].run(layer)
        second, last = data[cut:].run(layer, middle)
        _same(torch.cat((first, second)), y, f"outputs cut at {cut}")
        _same(last, state, f"state cut at {cut}")


def step_is_whole(make: Make) -> None:
    """Step by step gives the very bits of the whole sequence, on the reference."""
    layer = make(**WHOLE, backend="reference", return_state=False)
    for dtype in (torch.float32, torch.float64):
        layer = layer.to(dtype)
        data = trial(layer, 6, 3, dtype)
        stream = layer.stream(batch=3)
        parts = [data[t] for t in range(6)]
        steps = [stream(v.x, **({"inputs": v.inputs} if v.inputs else {})) for v in parts]
        whole, found = data.run(layer), torch.stack(steps)
        assert_close(found, whole, rtol=0, atol=0, msg=lambda text: f"step by step: {text}")


def rows_are_independent(make: Make) -> None:
    """A row's outputs do not depend on the rows around it."""
    layer = make()
    data = trial(layer, 4, 5)
    y, state = data.run(layer)
    for row in range(5):
        alone, own = data[:, row : row + 1].run(layer)
        _same(alone[:, 0], y[:, row], f"outputs of row {row}")
        for a, b in zip(own, state, strict=True):
            _same([v[:, 0] for v in a], [v[:, row] for v in b], f"state of row {row}")


def backward_is_flipped_forward(make: Make) -> None:
    """The backward direction equals: flip time, run forward, flip back."""
    both = make(bidirectional=True, merge="concat", hidden_size=3, num_layers=1, dilation=1)
    one = make(bidirectional=False, hidden_size=3, num_layers=1, dilation=1)
    own = dict(both.named_parameters())
    with torch.no_grad():
        for name, weight in one.named_parameters():
            weight.copy_(own[f"{name}_reverse"])
    data = trial(both, 5, 3)
    y, state = data.run(both)
    flipped, last = data.map(lambda v: v.flip(0)).run(one)
    _same(y[..., one.output_size :], flipped.flip(0), "outputs")
    _same([v[1] for v in state[0]], [v[0] for v in last[0]], "state")


def padded_is_packed_is_alone(make: Make) -> None:
    """A row in a ragged batch, padded or packed, length 0 included, equals that row alone."""
    layer = make()
    lengths = [3, 0, 5, 1]
    # Nothing behind a row's end may be looked at.
    data = trial(layer, 5, 4).filled((slice(3, None), 0), torch.nan)
    y, state = data.run(layer, lengths=lengths)
    for row, n in enumerate(lengths):
        alone, own = data[:n, row : row + 1].run(layer)
        _same(y[:n, row], alone[:, 0], f"outputs of row {row}")
        if y[n:, row].any():
            raise AssertionError(f"outputs of row {row} behind its end must be zero")
        for a, b in zip(own, state, strict=True):
            _same([v[:, 0] for v in a], [v[:, row] for v in b], f"state of row {row}")
    if data.inputs:
        return  # a PackedSequence takes no direct inputs
    pack = torch.nn.utils.rnn.pack_sequence
    rows = [0, 2, 3]
    packed, last = layer(pack([data.x[: lengths[r], r] for r in rows], enforce_sorted=False))
    _same(torch.nn.utils.rnn.pad_packed_sequence(packed)[0], y[:, rows], "packed outputs")
    _same(last, tuple(tuple(v[:, rows] for v in s) for s in state), "packed state")


def padding_gets_no_gradient(make: Make) -> None:
    """Steps behind a row's end get no gradient, and what lies there reaches none."""
    layer = make()
    data = trial(layer, 4, 2).filled((slice(2, None), 0), torch.inf)
    leaves = data.leaves()
    y, _ = data.run(layer, lengths=torch.tensor([2, 4]))
    y.square().sum().backward()
    for grad in (v.grad for v in leaves if v.grad is not None):
        if grad[2:, 0].any() or not grad.isfinite().all():
            raise AssertionError("padding must get a gradient of exactly zero")
    if not all(v.grad is None or v.grad.isfinite().all() for v in layer.parameters()):
        raise AssertionError("what lies in the padding reached a gradient")


def reset_is_two_sequences(make: Make) -> None:
    """A reset before step t equals two sequences, cut there, both from the initial state."""
    layer = make()
    data = trial(layer, 6, 2)
    reset = torch.zeros(6, 2, dtype=torch.bool)
    reset[4, 1] = True
    y, state = data.run(layer, reset=reset)
    _same(y[:, 0], data[:, :1].run(layer)[0][:, 0], "the row without reset")
    first, early = data[:4, 1:].run(layer)
    second, late = data[4:, 1:].run(layer)
    _same(y[:, 1:], torch.cat((first, second)), "the row with a reset")
    for whole, before, after in zip(state, early, late, strict=True):
        _same([v[0, 1] for v in whole], [v[0, 0] for v in after], "the last state")
        if layer.directions == 2:
            _same([v[1, 1] for v in whole], [v[1, 0] for v in before], "the state at the start")


def empty_is_legal(make: Make) -> None:
    """No steps, no rows and rows of length 0 give what they should: their starting state."""
    layer = make()
    start = layer.initial_state(3)
    y, state = trial(layer, 0, 3).run(layer)
    _same(state, start, "state after no steps")
    _same(y, torch.zeros(0, 3, layer.output_size, dtype=torch.float64), "outputs of no steps")
    y, _ = trial(layer, 4, 0).run(layer)
    _same(y, torch.zeros(4, 0, layer.output_size, dtype=torch.float64), "outputs of no rows")
    none = trial(layer, 4, 3).run(layer, lengths=[0, 0, 0])
    _same(none[1], start, "state of rows of length 0")


def past_does_not_see_future(make: Make) -> None:
    """In one direction, y_t depends on x only up to t, and through the state."""
    layer = make(bidirectional=False)
    data = trial(layer, 5, 2)
    changed = data.map(lambda v: torch.cat((v[:3], v[3:] + 1)))
    _same(data.run(layer)[0][:3], changed.run(layer)[0][:3], "outputs before the change")


def backends_agree(make: Make) -> None:
    """Value and every gradient of each backend that takes the cell equal the reference's."""
    expected = None
    for name in ("reference", *(n for n in BACKENDS if n != "reference")):
        layer = make(backend=name)
        torch.manual_seed(3)
        data = trial(layer, 5, 3)
        leaves = [*data.leaves(), *layer.parameters()]
        try:
            y, state = data.run(layer)
        except BackendError:
            continue
        results = [y, *(v for part in state for v in part)]
        weights = [torch.randn_like(v) for v in results]
        # A state that is only handed on has a gradient, which is zero, from some backends alone.
        reached = [(v, w) for v, w in zip(results, weights, strict=True) if v.requires_grad]
        ends, d = zip(*reached, strict=True)
        found = torch.autograd.grad(ends, leaves, d, materialize_grads=True)
        expected = (results, found) if expected is None else expected
        _same((results, found), expected, f"backend {name}")


LAWS: Final[dict[str, Callable[[Make], None]]] = {
    law.__name__: law
    for law in (
        gradients_are_right, split_is_whole, step_is_whole, rows_are_independent,
        backward_is_flipped_forward, padded_is_packed_is_alone, padding_gets_no_gradient,
        reset_is_two_sequences, empty_is_legal, past_does_not_see_future, backends_agree,
    )
}  # fmt: skip
