"""check(cell): the laws that every cell must obey on every backend, over random sizes.

A law takes `make(**forced) -> Recurrent`, which builds a float64 layer of the cell under test with
random weights (and whatever options are tested), `forced` options winning. Cells that declare
`inputs` are given random ones. Two computations of the same thing may differ by TOLERANCE; where
the law is about bits it is exact.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.testing import assert_close

from throughtime.backends import BACKENDS
from throughtime.cell.layout import find_fitting_size
from throughtime.cells import Cell
from throughtime.compiler.passes import find_unsupported
from throughtime.compiler.trace import trace
from throughtime.errors import BackendError, LawError, OptionError
from throughtime.layers import Recurrent


@dataclass(frozen=True)
class Trial:
    """A batch for a layer of any cell.

    Attributes:
        x: (T, B, I), standard normal at first.
        inputs: name -> (T, B, width), from 0.1 to 1, as a gap of time or a mask may be.
    """

    x: Tensor
    inputs: dict[str, Tensor]

    def run(self, layer: Recurrent, state: Any = None, **options: Any) -> Any:
        return layer(self.x, state, inputs=self.inputs or None, **options)

    def __getitem__(self, part: Any) -> Trial:
        return self.map(lambda v: v[part])

    def map(self, change: Callable[[Tensor], Tensor]) -> Trial:
        """The same change of x and of every direct input."""
        return Trial(change(self.x), {n: change(v) for n, v in self.inputs.items()})

    def filled(self, part: Any, value: float) -> Trial:
        """The same with some steps and rows overwritten."""

        def change(v: Tensor) -> Tensor:
            v = v.clone()
            v[part] = value
            return v

        return self.map(change)

    def leaves(self) -> list[Tensor]:
        """x and the direct inputs, each with a gradient of its own from now on."""
        return [v.requires_grad_() for v in (self.x, *self.inputs.values())]


def trial(layer: Recurrent, steps: int, rows: int, dtype: torch.dtype = torch.float64) -> Trial:
    """Random steps for all rows."""
    x = torch.randn(steps, rows, layer.input_size, dtype=dtype)
    inputs = {}
    for name in layer.cell.layout.inputs:
        width = layer.cell.width(layer.cell.inputs[name], layer.hidden_sizes[0])
        inputs[name] = 0.1 + 0.9 * torch.rand(steps, rows, width, dtype=dtype)
    return Trial(x, inputs)


def check_gradients(layer: Recurrent, data: Trial) -> None:
    """Raises when a gradient is not the finite difference, and names it."""
    weights = dict(layer.named_parameters())
    names = ["x", *data.inputs, *weights]

    def outputs(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names[1:], values, strict=True))
        inputs = {n: parameters.pop(n) for n in data.inputs}
        y, state = torch.func.functional_call(layer, parameters, (x,), {"inputs": inputs or None})
        # In fast mode gradcheck mixes up results when one of them, a state that is only handed on,
        # depends on nothing; so zero times x is added to each.
        nothing = 0 * x.sum()
        return (y, *(v + nothing for part in state for v in part))

    try:
        torch.autograd.gradcheck(outputs, (*data.leaves(), *weights.values()), fast_mode=True)
    except GradcheckError as error:
        message = str(error).strip().partition("\n\n")[0]  # whole matrices follow
        message = re.sub(r"input (\d+)", lambda match: names[int(match[1])], message)
        raise AssertionError(message) from None


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
    """A sequence cut at any step, its state handed on, equals the whole."""
    layer = make(**WHOLE)
    data = trial(layer, 5, 3)
    y, state = data.run(layer)
    for cut in range(1, 5):
        first, middle = data[:cut].run(layer)
        second, last = data[cut:].run(layer, middle)
        _same(torch.cat((first, second)), y, f"outputs cut at {cut}")
        _same(last, state, f"state cut at {cut}")


def step_is_whole(make: Make) -> None:
    """Step by step equals the whole sequence bit by bit, on the reference."""
    layer = make(**WHOLE, backend="reference", return_state=False)
    for dtype in (torch.float32, torch.float64):
        layer = layer.to(dtype)
        data = trial(layer, 6, 3, dtype)
        stream = layer.stream(batch=3)
        parts = [data[t] for t in range(6)]
        steps = [stream(v.x, **({"inputs": v.inputs} if v.inputs else {})) for v in parts]
        whole, outputs = data.run(layer), torch.stack(steps)
        assert_close(outputs, whole, rtol=0, atol=0, msg=lambda text: f"step by step: {text}")


def rows_are_independent(make: Make) -> None:
    """A row's outputs do not depend on the rows around it."""
    layer = make()
    data = trial(layer, 4, 5)
    y, state = data.run(layer)
    for row in range(5):
        alone, final = data[:, row : row + 1].run(layer)
        _same(alone[:, 0], y[:, row], f"outputs of row {row}")
        for a, b in zip(final, state, strict=True):
            _same([v[:, 0] for v in a], [v[:, row] for v in b], f"state of row {row}")


def backward_is_flipped_forward(make: Make) -> None:
    """The backward direction equals: flip time, run forward, flip back."""
    both = make(bidirectional=True, merge="concat", hidden_size=3, num_layers=1, dilation=1)
    one = make(bidirectional=False, hidden_size=3, num_layers=1, dilation=1)
    weights = dict(both.named_parameters())
    with torch.no_grad():
        for name, weight in one.named_parameters():
            weight.copy_(weights[f"{name}_reverse"])
    data = trial(both, 5, 3)
    y, state = data.run(both)
    flipped, last = data.map(lambda v: v.flip(0)).run(one)
    _same(y[..., one.output_size :], flipped.flip(0), "outputs")
    _same([v[1] for v in state[0]], [v[0] for v in last[0]], "state")


def padded_is_packed_is_alone(make: Make) -> None:
    """A row in a ragged batch, padded or packed, length 0 included, equals that row alone."""
    layer = make()
    lengths = [3, 0, 5, 1]
    # Nothing after a row's end may be read.
    data = trial(layer, 5, 4).filled((slice(3, None), 0), torch.nan)
    y, state = data.run(layer, lengths=lengths)
    for row, n in enumerate(lengths):
        alone, final = data[:n, row : row + 1].run(layer)
        _same(y[:n, row], alone[:, 0], f"outputs of row {row}")
        if y[n:, row].any():
            raise AssertionError(f"outputs of row {row} after its end must be zero")
        for a, b in zip(final, state, strict=True):
            _same([v[:, 0] for v in a], [v[:, row] for v in b], f"state of row {row}")
    if data.inputs:
        return  # a PackedSequence takes no direct inputs
    pack = torch.nn.utils.rnn.pack_sequence
    rows = [0, 2, 3]
    packed, last = layer(pack([data.x[: lengths[r], r] for r in rows], enforce_sorted=False))
    _same(torch.nn.utils.rnn.pad_packed_sequence(packed)[0], y[:, rows], "packed outputs")
    _same(last, tuple(tuple(v[:, rows] for v in s) for s in state), "packed state")


def padding_gets_no_gradient(make: Make) -> None:
    """Steps after a row's end get no gradient, and their values reach none."""
    layer = make()
    data = trial(layer, 4, 2).filled((slice(2, None), 0), torch.inf)
    leaves = data.leaves()
    y, _ = data.run(layer, lengths=torch.tensor([2, 4]))
    y.square().sum().backward()
    for grad in (v.grad for v in leaves if v.grad is not None):
        if grad[2:, 0].any() or not grad.isfinite().all():
            raise AssertionError("padding must get a gradient of exactly zero")
    if not all(v.grad is None or v.grad.isfinite().all() for v in layer.parameters()):
        raise AssertionError("values in the padding reached a gradient")


def reset_is_two_sequences(make: Make) -> None:
    """A reset before step t equals two sequences, cut there, both from the initial state."""
    layer = make()
    data = trial(layer, 6, 2)
    reset = torch.zeros(6, 2, dtype=torch.bool)
    reset[4, 1] = True
    y, state = data.run(layer, reset=reset)
    _same(y[:, 0], data[:, :1].run(layer)[0][:, 0], "the row without reset")
    first, _ = data[:4, 1:].run(layer)
    second, last = data[4:, 1:].run(layer)
    _same(y[:, 1:], torch.cat((first, second)), "the row with a reset")
    for whole, alone in zip(state, last, strict=True):
        _same([v[:, 1] for v in whole], [v[:, 0] for v in alone], "the last sequence's state")


def empty_is_legal(make: Make) -> None:
    """No steps, no rows and rows of length 0 return their starting state."""
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
    """In one direction, y_t depends on x only up to t."""
    layer = make(bidirectional=False)
    data = trial(layer, 5, 2)
    changed = data.map(lambda v: torch.cat((v[:3], v[3:] + 1)))
    _same(data.run(layer)[0][:3], changed.run(layer)[0][:3], "outputs before the change")


def backends_agree(make: Make) -> None:
    """The value and every gradient of each backend that takes the cell equal the reference's."""
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
        # Some backends give a state that is only handed on a gradient of zero, others none.
        reached = [(v, w) for v, w in zip(results, weights, strict=True) if v.requires_grad]
        ends, d = zip(*reached, strict=True)
        gradients = torch.autograd.grad(ends, leaves, d, materialize_grads=True)
        expected = (results, gradients) if expected is None else expected
        _same((results, gradients), expected, f"backend {name}")


LAWS: Final[dict[str, Callable[[Make], None]]] = {
    law.__name__: law
    for law in (
        gradients_are_right, split_is_whole, step_is_whole, rows_are_independent,
        backward_is_flipped_forward, padded_is_packed_is_alone, padding_gets_no_gradient,
        reset_is_two_sequences, empty_is_legal, past_does_not_see_future, backends_agree,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """The result of `check`.

    Attributes:
        cell: the cell.
        laws: the laws that held.
        uncompiled: operations without a rule, with their lines; they keep the cell on the
            reference.
        skipped: parts of the laws that do not apply to the cell.
    """

    cell: Cell
    laws: tuple[str, ...]
    uncompiled: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.cell!r}: {len(self.laws)} laws hold", *(f"  {law}" for law in self.laws)]
        lines += [f"  not held: {part}" for part in self.skipped]
        lines += [f"  stays uncompiled: {reason}" for reason in self.uncompiled]
        return "\n".join(lines)


FIXED: Final = {
    "batch_first": False, "return_state": True, "backend": "auto", "device": None, "dtype": None,
}  # fmt: skip
"""Options that change no equation; the laws set them or rely on their defaults."""


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in FIXED and value != FIXED[name]:
            raise OptionError(
                f"check takes options that change what a layer computes, and holds the laws in "
                f"float64 on every backend; leave {name} out, got {value!r}"
            )


def maker(cell: Cell, seed: int, **options: Any) -> Callable[..., Recurrent]:
    """The laws' `make`: layers of random sizes that fit, with random weights, in float64."""

    def make(**forced: Any) -> Recurrent:
        torch.manual_seed(seed)
        sizes = torch.randint(1, 6, (2,)).tolist()
        arguments = {"hidden_size": sizes[1], "dtype": torch.float64, **options, **forced}
        H = arguments.pop("hidden_size")
        if isinstance(H, list | tuple):
            H = [find_fitting_size(cell, h) for h in H]
        else:
            H = find_fitting_size(cell, H)
        layer = Recurrent(cell, sizes[0], H, **arguments)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.3)
        return layer.eval()

    return make


def check(cell: Cell, *, seed: int = 0, **options: Any) -> Checked:
    """Check every law on a cell, by gradcheck and on every backend that takes it.

    A cell that declares `inputs` is given random ones, from 0.1 to 1.

    Args:
        cell: an instance of a `Cell`, of this package or your own.
        seed: of the random sizes, weights and inputs.
        options: of `Recurrent` that change what is computed; the laws are checked with them.

    Returns:
        What was checked.

    Raises:
        OptionError: an option that a layer does not take, or that changes no equation.
        CellError: this is no cell, or its equations cannot be traced; gives the line.
        LawError: the laws that do not hold, each with its difference.
    """
    _check_options(options)
    trace(cell)  # refuses what is no cell
    reason = find_unsupported(cell, find_fitting_size(cell, 4))
    laws, broken = [], []
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"{type(cell).__name__} runs on the reference")
        for name, law in LAWS.items():
            torch.manual_seed(seed)
            try:
                law(maker(cell, seed, **options))
            except (AssertionError, RuntimeError) as error:
                broken.append(f"{name} ({(law.__doc__ or '').strip()}): {error}")
            else:
                laws.append(name)
    if broken:
        raise LawError(f"{cell!r} breaks {len(broken)} of {len(LAWS)} laws:\n" + "\n".join(broken))
    uncompiled = () if reason is None else (f"{reason.operation}: {reason.line}",)
    skipped = ("packed, since a PackedSequence takes no direct inputs",)
    return Checked(cell, tuple(laws), uncompiled, skipped if cell.layout.inputs else ())
