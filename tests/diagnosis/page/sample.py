"""A report of drawn numbers with every quantity in it, and names that no page expects."""

from __future__ import annotations

import math
import random

from throughtime.diagnosis.quantities.capacity import MemoryCapacity
from throughtime.diagnosis.quantities.clipping import Clipping
from throughtime.diagnosis.quantities.connectivity import Connectivity
from throughtime.diagnosis.quantities.evenness import Depth, Evenness, Neighbours, Share
from throughtime.diagnosis.quantities.gates import GateTimes, Saturation
from throughtime.diagnosis.quantities.jacobians import Jacobians, RecurrentMatrix
from throughtime.diagnosis.quantities.lag_gradient import LagGradient
from throughtime.diagnosis.quantities.weight_lags import WeightLags
from throughtime.diagnosis.report import Band, Missing, ModuleReport, Report, Trouble

NAME = "<script>alert('&')</script>"
"""A module's name as torch allows it."""

PLACES = (("", 0, 0), ("", 1, 0), (NAME, 0, 0), (NAME, 0, 1))
"""Module, layer, direction."""


class Draw:
    """Numbers for T steps and so many units; the same for the same sizes."""

    def __init__(self, steps: int, units: int) -> None:
        self.T, self.units = steps, units
        self.uniform = random.Random(0).uniform

    def shares(self, count: int) -> tuple[float, ...]:
        return tuple(self.uniform(0, 1) for _ in range(count))

    def rho(self, end: float) -> tuple[float, ...]:
        """From 0 down to about `end`; the last two are exact zeros."""
        falling = (end * k / self.T + self.uniform(-0.2, 0.2) for k in range(1, self.T - 2))
        return (0.0, *falling, -math.inf, -math.inf)

    def lag_gradient(self, place: tuple[str, int, int], end: float) -> LagGradient:
        rho = self.rho(end)
        near, far = (next((k for k, v in enumerate(rho) if v < w), None) for w in (-0.434, -3))
        return LagGradient(*place, rho, near, far, end / self.T, 0.071, self.uniform(0, 9))

    def module(self, name: str) -> ModuleReport:
        places = [(i, d) for n, i, d in PLACES if n == name]
        return ModuleReport(
            name,
            "Own(a=1)",
            (self.units,) * (1 + max(i for i, _ in places)),
            "",
            tuple(self.jacobians(*p) for p in places),
            tuple(self.gate_times(*p) for p in places),
        )

    def jacobians(self, layer: int, direction: int) -> Jacobians:
        exponents = sorted((self.uniform(-3, 0.1) for _ in range(self.units - 1)), reverse=True)
        matrices = tuple(RecurrentMatrix(gate, *self.shares(3)) for gate in "fo")
        stretch = (0.11, 0.52, 1.23)
        return Jacobians(layer, direction, (*exponents, -math.inf), stretch, math.inf, 20, matrices)

    def gate_times(self, layer: int, direction: int) -> GateTimes:
        tau = (0.0, math.inf, *(10 ** self.uniform(-0.5, 2.5) for _ in range(self.units - 2)))
        ends = tuple(Saturation(gate, "sigmoid", *self.shares(2)) for gate in "if")
        return GateTimes(layer, direction, "gate", tau, ends, self.shares(self.units), (3, 5))

    def connectivity(self, name: str) -> Connectivity:
        at = (self.T // 3, self.T - 1)
        rows = tuple((*self.shares(t + 1), *[0.0] * (self.T - t - 1)) for t in at)
        return Connectivity(name, at, rows)

    def capacity(self, name: str, layer: int, direction: int) -> MemoryCapacity:
        r2 = (*sorted(self.shares(2 * self.units), reverse=True), 0.0)
        return MemoryCapacity(name, layer, direction, self.units, r2, 7.5, 6, 0.0032, 2500)

    def weight_lags(self, name: str, direction: int) -> WeightLags:
        cosine = (*sorted(self.shares(self.T - 2)), 0.995, 1.0)
        return WeightLags(direction, self.shares(self.T), self.shares(self.T), cosine, 1e-9, name)

    def evenness(self) -> Evenness:
        recurrent = [
            Share(f"{kind}_l{layer}", "", layer, 0, gate, 10 ** self.uniform(-6, -1))
            for layer in (0, 1)
            for kind in ("weight_ih", "weight_hh")
            for gate in "ifgo"
        ]
        head = [Share(f"head.{w}", "", None, None, "", r) for w, r in (("w", 0.01), ("b", None))]
        at = (0, self.T // 2, self.T - 1)
        depth = tuple(Depth("", layer, 0, at, (*self.shares(2), 0.0)) for layer in (0, 1))
        return Evenness("update", (*recurrent, *head), depth, (Neighbours("", 0, 0, 0.034),))


def sample(steps: int = 30, units: int = 12) -> Report:
    """Two modules, one of two layers and one that runs both ways; every field is filled."""
    draw = Draw(steps, units)
    ends = (-6, -45, 2, -1)
    return Report(
        model="Forecaster",
        steps=steps,
        rows=8,
        lag=20,
        loss=0.123456789,
        truncation=11,
        lag_gradients=tuple(map(draw.lag_gradient, PLACES, ends)),
        bands=tuple(Band(*place, 3, draw.rho(-6), draw.rho(-5)) for place in PLACES),
        torch_default=tuple(draw.lag_gradient(place, -9) for place in PLACES),
        connectivity=(draw.connectivity(""), draw.connectivity(NAME)),
        modules=(draw.module(""), draw.module(NAME)),
        capacities=tuple(draw.capacity(*place) for place in PLACES),
        weight_lags=(draw.weight_lags("", 0), draw.weight_lags(NAME, 0), draw.weight_lags(NAME, 1)),
        clipping=Clipping("norm", 0.75, draw.shares(16), 0.31, 0.91, 0.97, 0.98, 0.24, 0.44, 8.2),
        evenness=draw.evenness(),
        troubles=(
            Trouble("exploding", NAME, f"Exploding in {NAME}: 10^2.5.", "Start anew.", 2.5, 0.0),
            Trouble("vanishing", "", "Vanishing in layer 1.", "Then 10^-0.2 & more.", -45.0, None),
        ),
        missing=(Missing("capacities", "decoder", "it has direct inputs <dt>."),),
    )


def bare() -> Report:
    """The same with no quantity at all, as of a model that gives NaN."""
    return Report(
        model="Forecaster", steps=30, rows=8, lag=20, loss=None, truncation=None,
        lag_gradients=(), bands=(), torch_default=(), connectivity=(), modules=(), capacities=(),
        weight_lags=(), clipping=None, evenness=None, troubles=(),
        missing=(Missing("lag_gradients", "", "the loss is NaN from the start."),),
    )  # fmt: skip
