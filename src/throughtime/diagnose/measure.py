"""One call on an unchanged model: everything measured, put in a report."""

from __future__ import annotations

from typing import Any

from torch import nn

from throughtime.diagnose.gates import gate_times
from throughtime.diagnose.jacobians import DROPPED, jacobians
from throughtime.diagnose.lag_gradient import LagGradient, lag_gradients
from throughtime.diagnose.report import Module, Report
from throughtime.diagnose.subject import Loss, Subject, as_batches
from throughtime.diagnose.verdict import troubles
from throughtime.errors import OptionError


def diagnose(
    model: nn.Module, batches: Any, loss: Loss | None = None, lag: int | None = None
) -> Report:
    """Measure how far back an unchanged model learns, and say what is wrong.

    The model runs in eval mode on a copy; its parameters, gradients, buffers and training flag
    stay, and so does the state of torch's generators.

    Args:
        model: a recurrent layer of torch.nn or of this package, or a module with some in it.
        batches: a batch or an iterable of them, of which the first is measured; a batch is the
            model's input, or a tuple of input and target.
        loss: called with output and target, or the output alone where there is no target; left
            out, a fixed random projection of the last output.
        lag: how many steps back the task needs; left out, the whole sequence.

    Raises:
        TypeError, OptionError, ShapeError: what cannot be looked at; the text says why.

    Source: Pascanu, Mikolov and Bengio, On the Difficulty of Training Recurrent Neural Networks
    (2013); the files of the quantities name theirs.
    """
    subject, batch = Subject(model), as_batches(batches)[0]
    seen = subject.run(batch, loss, last_only=True)
    gradients = lag_gradients(seen)
    T, B = seen.paths[0].x.shape[:2]
    lag = _checked_lag(lag, min(len(g.log10_rho_by_lag) for g in gradients))
    modules = []
    for name, given in seen.batches.items():
        layer = subject.layers[name]
        J = jacobians(layer, given) if given.x.shape[0] > DROPPED else ()
        modules.append(Module(name, repr(layer.cell), J, gate_times(layer, given)))
    exponents = {(m.name, j.layer, j.direction): j for m in modules for j in m.jacobians}

    def measure(other: nn.Module) -> tuple[LagGradient, ...]:
        return lag_gradients(Subject(other).run(batch, loss, last_only=True))

    return Report(
        model=type(model).__name__,
        steps=T,
        rows=B,
        lag=lag,
        loss=seen.loss.item(),
        truncation=None,
        lag_gradients=gradients,
        bands=(),
        torch_default=(),
        connectivity=(),
        modules=tuple(modules),
        capacities=(),
        weight_lags=(),
        clipping=None,
        evenness=None,
        troubles=troubles(model, lag, gradients, exponents, measure),
        missing=(),
    )


def _checked_lag(lag: int | None, steps: int) -> int:
    if lag is None:
        return steps - 1
    if isinstance(lag, bool) or not isinstance(lag, int) or not 1 <= lag < steps:
        raise OptionError(f"lag must be a number of steps from 1 to {steps - 1}, got {lag!r}")
    return lag
