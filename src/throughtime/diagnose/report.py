"""The report: one call on an unchanged model, and all its numbers as data."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from throughtime.diagnose import data
from throughtime.diagnose.gates import GateTimes, gate_times
from throughtime.diagnose.jacobians import DROPPED, Jacobians, jacobians
from throughtime.diagnose.lag_gradient import LagGradient, lag_gradients
from throughtime.diagnose.subject import Loss, Subject, as_batches
from throughtime.diagnose.table import compared, table
from throughtime.diagnose.verdict import Trouble, troubles
from throughtime.errors import OptionError


@dataclass(frozen=True)
class Module:
    """One recurrent module of the model.

    Attributes:
        name: its name; empty when it is the model.
        cell: its cell in words.
        jacobians: of each layer and direction, on two rows; empty for 10 steps or fewer.
        gates: time scales and saturation of each layer and direction.
    """

    name: str
    cell: str
    jacobians: tuple[Jacobians, ...]
    gates: tuple[GateTimes, ...]


@dataclass(frozen=True)
class Report:
    """How far back a model learns, why, and what would change it; measured on one batch.

    Attributes:
        model: its class.
        steps: T.
        rows: B.
        lag: how far back the task needs, steps.
        loss: its value.
        lag_gradients: of each layer and direction that the last step's loss depends on.
        modules: the recurrent modules.
        troubles: what is wrong, in the order of the rules; empty when nothing is.
    """

    model: str
    steps: int
    rows: int
    lag: int
    loss: float
    lag_gradients: tuple[LagGradient, ...]
    modules: tuple[Module, ...]
    troubles: tuple[Trouble, ...]

    def to_json(self) -> str:
        """All numbers as JSON; what is not finite as a word."""
        return data.to_json(self)

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            ValueError: the text is not of a report.
        """
        return data.from_json(Report, text)

    def save(self, file: str | PathLike[str]) -> None:
        """Write one HTML page that needs nothing else, or the JSON, as the name's ending says.

        Args:
            file: ends in .html or .json.

        Raises:
            OptionError: another ending.
            MissingExtra: a page without plotly, which the extra `train` installs.
        """
        path = Path(file)
        if path.suffix not in (".html", ".json"):
            raise OptionError(f"a report is saved as .html or .json, got {path.name!r}")
        if path.suffix == ".json":
            path.write_text(self.to_json(), encoding="utf-8")
            return
        from throughtime.diagnose.page.write import page

        path.write_text(page(self), encoding="utf-8")

    def compare(self, other: Report) -> str:
        """This report's horizon and gradients beside another's, as a table."""
        return compared(self, other)

    def __str__(self) -> str:
        return table(self)


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
        lag_gradients=gradients,
        modules=tuple(modules),
        troubles=troubles(model, lag, gradients, exponents, measure),
    )


def _checked_lag(lag: int | None, steps: int) -> int:
    if lag is None:
        return steps - 1
    if isinstance(lag, bool) or not isinstance(lag, int) or not 1 <= lag < steps:
        raise OptionError(f"lag must be a number of steps from 1 to {steps - 1}, got {lag!r}")
    return lag
