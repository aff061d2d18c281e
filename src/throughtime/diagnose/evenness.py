"""Is it learning evenly: gradient or update beside the weights, by matrix, gate and depth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One matrix, vector or gate's block of it.

    Attributes:
        parameter: its name in the model.
        name: the recurrent module's name, where it is of one; else empty.
        layer: number of the layer in it; None where it is of no recurrent module.
        direction: 0 forward, 1 backward; None likewise.
        gate: the gate; empty where the parameter is not made of gates.
        ratio: ||g|| / ||theta||, or ||delta theta|| / ||theta||; None where ||theta|| is 0.
    """

    parameter: str
    name: str
    layer: int | None
    direction: int | None
    gate: str
    ratio: float | None


@dataclass(frozen=True)
class Depth:
    """The gradient that reaches one layer and direction at fixed steps.

    Attributes:
        name: the module's name in the model.
        layer: number of the layer in it.
        direction: 0 forward, 1 backward.
        steps: t, counted from 0 in the order of time.
        norms: ||d_t|| of all rows at each of them, d_t = dL/ds_t of the whole loss.
    """

    name: str
    layer: int
    direction: int
    steps: tuple[int, ...]
    norms: tuple[float, ...]


@dataclass(frozen=True)
class Neighbours:
    """One layer and the next above it in a module, of one direction.

    Attributes:
        name: the module's name in the model.
        layer: number of the lower one.
        direction: 0 forward, 1 backward.
        cosine: of the gradients d_t of both, over all steps and rows; None where their states
            differ in width or a gradient is zero. Near 0 unless residual paths join them.
    """

    name: str
    layer: int
    direction: int
    cosine: float | None


@dataclass(frozen=True)
class Evenness:
    """How evenly a model learns.

    Attributes:
        kind: "gradient": ratio is ||g|| / ||theta||; "update": ||delta theta|| / ||theta||, for
            parameters known before and after, theta the one before.
        shares: of every parameter that trains, those of recurrent layers by gate.
        depth: of every layer and direction at the first, the middle and the last step.
        neighbours: of every two layers that follow each other in a module.
    """

    kind: str
    shares: tuple[Share, ...]
    depth: tuple[Depth, ...]
    neighbours: tuple[Neighbours, ...]
