"""Gates: their values in a run, and the time scale of each unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from throughtime.cell.contract import Names
from throughtime.cell.layout import WeightMatrix
from throughtime.diagnosis.observe.steps import Steps, list_steps
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.layer import Passage

_BOUNDED: dict[Any, str] = {
    torch.sigmoid: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    torch.special.expit: "sigmoid",
    torch.nn.functional.sigmoid: "sigmoid",
    torch.nn.functional.logsigmoid: "logsigmoid",
    torch.tanh: "tanh",
    Tensor.tanh: "tanh",
    torch.nn.functional.tanh: "tanh",
}


@dataclass(frozen=True)
class Activity:
    """The values of one bounded function of the equations.

    Attributes:
        names: the gates and vectors whose numbers go into it, without other gates' values.
        function: "sigmoid" or "tanh".
        values: (N, H), over all steps of all rows.
    """

    names: frozenset[str]
    function: str
    values: Tensor


@torch.no_grad()
def record_activities(steps: Steps) -> list[Activity]:
    """Every sigmoid and tanh of the cell's equations, in the order they are computed."""
    a, U, p = steps.parts()
    watch = _Watch()
    for names in (a, p):
        for name, value in vars(names).items():
            if isinstance(value, Tensor):
                watch.mark(value, {name})
    products = {n: _Named(u, n, watch) for n, u in U.items()}
    s = Names("s", dict(zip(steps.cell.state_names, steps.before, strict=True)))
    with watch:
        steps.cell.step(a, Names("U", products), s, p)
    return watch.activities


@dataclass(frozen=True)
class _Named:
    """A matrix whose products are marked with its gate's name."""

    matrix: WeightMatrix
    name: str
    watch: _Watch

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.watch.mark(self.matrix @ v, {self.name})


class _Watch(TorchFunctionMode):
    """Tracks which gates' numbers go into each tensor, up to the next bounded function."""

    def __init__(self) -> None:
        super().__init__()
        self.activities: list[Activity] = []
        self._names: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the id of a marked one

    def mark(self, value: Tensor, names: Iterable[str]) -> Tensor:
        known = self._names.get(id(value), frozenset())
        self._names[id(value)] = known | frozenset(names)
        self._alive.append(value)
        return value

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        value = function(*args, **(kwargs or {}))
        names = frozenset[str]().union(*(self._of(v) for v in (*args, *(kwargs or {}).values())))
        if function in _BOUNDED:
            self._find(names, _BOUNDED[function], value)
        elif names:
            for v in value if isinstance(value, tuple | list) else (value,):
                if isinstance(v, Tensor):
                    self.mark(v, names)
        return value

    def _find(self, names: frozenset[str], function: str, value: Tensor) -> None:
        if function == "logsigmoid":  # a gate of which the equations compute the logarithm
            function, value = "sigmoid", value.exp()
        self.activities.append(Activity(names, function, value))

    def _of(self, value: Any) -> frozenset[str]:
        if isinstance(value, tuple | list):
            return frozenset[str]().union(*(self._of(v) for v in value))
        return self._names.get(id(value), frozenset())


LOW, HIGH, STILL = 0.05, 0.95, 1e-3
"""Limits: a gate is shut, is open; the deviation below which a unit is dead."""


@dataclass(frozen=True)
class Saturation:
    """The share of one bounded function's values at its ends.

    Attributes:
        name: the gate, or "state" for a function of the state.
        function: "sigmoid" or "tanh".
        share_low: of all steps and units, values below 0.05 (tanh: below -0.95).
        share_high: values above 0.95.
    """

    name: str
    function: str
    share_low: float
    share_high: float


@dataclass(frozen=True)
class GateTimes:
    """Time scales, saturation and dead units of one layer and direction.

    Attributes:
        layer: its number.
        direction: 0 forward, 1 backward.
        kind: "gate": tau_i = -1 / ln(mean over steps and rows of the share kept), one a unit;
            "eigenvalues": tau_i = -1 / ln |lambda_i| of the mean Jacobian ds_t / ds_{t-1}, for
            cells without a gate that keeps. Infinite where nothing is lost (|lambda| >= 1).
        tau_steps: the time scales, steps; those of a dilated layer count all steps between.
        saturation: of each sigmoid and tanh in the equations.
        unit_deviations: standard deviation of each unit's output over steps and rows.
        dead_units: numbers of the units whose deviation is below 0.001.
    """

    layer: int
    direction: int
    kind: str
    tau_steps: tuple[float, ...]
    saturation: tuple[Saturation, ...]
    unit_deviations: tuple[float, ...]
    dead_units: tuple[int, ...]

    def share_above(self, lag: float) -> float:
        """The share of time scales above so many steps; 0 without units."""
        return sum(tau > lag for tau in self.tau_steps) / max(1, len(self.tau_steps))


def gate_times(layer: Passage, batch: Batch) -> tuple[GateTimes, ...]:
    """Measure every layer and direction on one batch.

    The cell's file declares which gate keeps; its values are read from the equations.

    Args:
        layer: a recurrent layer of this package.
        batch: time-major and padded, in the layer's layout.

    Raises:
        ShapeError: fewer than two steps in all, over which nothing can vary.
        OptionError: the batch or its states are not finite, or the gate that the cell declares is
            no sigmoid of its equations.

    Source: Tallec and Ollivier, Can Recurrent Neural Networks Warp Time? (2018) for the gates;
    for plain cells the eigenvalues of diag(mean phi') U, which the mean Jacobian is.
    """
    return tuple(_measure_part(part) for part in list_steps(layer, batch))


def _measure_part(steps: Steps) -> GateTimes:
    if len(steps.x) < 2:
        raise ShapeError(f"time scales need at least 2 steps over all rows, got {len(steps.x)}")
    if not all(bool(v.isfinite().all()) for v in steps.after):
        raise OptionError(
            f"layer {steps.layer} makes NaN or infinity of this batch, so it has no time scales"
        )
    functions = record_activities(steps)
    keeps = steps.cell.keeps
    times = _measure_gates(steps, functions, keeps) if keeps else _measure_jacobian(steps)
    deviation = steps.after[0].std(0, correction=0)
    return GateTimes(
        layer=steps.layer,
        direction=steps.direction,
        kind="gate" if keeps else "eigenvalues",
        tau_steps=tuple(steps.dilation * _find_time_scale(share) for share in times.tolist()),
        saturation=tuple(measure_saturation(f, steps) for f in functions),
        unit_deviations=tuple(deviation.tolist()),
        dead_units=tuple(torch.nonzero(deviation < STILL).flatten().tolist()),
    )


def _find_time_scale(share: float) -> float:
    """-1 / ln f; at or above 1 nothing is lost."""
    if share <= 0:
        return 0.0
    return math.inf if share >= 1 else -1 / math.log(share)


def _measure_gates(steps: Steps, functions: list[Activity], keeps: Mapping[str, int]) -> Tensor:
    """Mean share kept of each unit, (H,); units of several keeping gates one after the other."""
    shares = []
    for name, sign in keeps.items():
        gates = [f.values for f in functions if name in f.names and f.function == "sigmoid"]
        if len(gates) != 1:
            raise OptionError(
                f"{type(steps.cell).__name__} declares that {name} keeps its state, so one sigmoid "
                f"of its equations must be made of {name}, got {len(gates)}"
            )
        mean = gates[0].mean(0)
        shares.append(mean if sign > 0 else 1 - mean)
    return torch.cat(shares)


def _measure_jacobian(steps: Steps) -> Tensor:
    """|eigenvalues| of the mean Jacobian of the states side by side, (S,)."""
    widths = [v.shape[-1] for v in steps.before]
    with torch.enable_grad():
        shift = torch.zeros(sum(widths), dtype=torch.float64, device=steps.x.device)
        shift.requires_grad_()
        before = tuple(v + s for v, s in zip(steps.before, shift.split(widths), strict=True))
        mean = torch.cat([v.mean(0) for v in steps.again(before)])
        rows = [torch.autograd.grad(m, shift, retain_graph=True)[0] for m in mean]
    eigenvalues: Tensor = torch.linalg.eigvals(torch.stack(rows)).abs()
    return eigenvalues


def measure_saturation(activity: Activity, steps: Steps) -> Saturation:
    """The share of one bounded function's values at its ends, over these steps."""
    gates = [g for g in steps.cell.gates if g in activity.names]
    return Saturation(
        name="+".join(gates) or "state",
        function=activity.function,
        share_low=float((activity.values < _low(activity)).double().mean()),
        share_high=float((activity.values > HIGH).double().mean()),
    )


def measure_share_at_ends(activity: Activity) -> Tensor:
    """(): the share of a bounded function's values at either end."""
    return ((activity.values < _low(activity)) | (activity.values > HIGH)).double().mean()


def _low(activity: Activity) -> float:
    return LOW if activity.function == "sigmoid" else -HIGH
