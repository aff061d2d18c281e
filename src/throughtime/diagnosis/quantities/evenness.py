"""Whether a model learns evenly: gradient or update per weight, by matrix, gate and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.diagnosis.observe import LayerDirection
from throughtime.diagnosis.observe.every_state import Path
from throughtime.diagnosis.observe.examined import ExaminedModel, ModelRun
from throughtime.errors import OptionError, ShapeError


@dataclass(frozen=True)
class Share:
    """One matrix, vector or gate's block of it.

    Attributes:
        parameter: its name in the model.
        name: the recurrent module's name; empty for parameters of other modules.
        layer: number of the layer in it; None for parameters of other modules.
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
class Depth(LayerDirection):
    """The gradient that reaches one layer and direction at fixed steps.

    Attributes:
        steps: t, counted from 0 in the order of time: the first, middle and last of the longest
            row.
        norms: ||d_t|| of all rows at their first, middle and last step, d_t = dL/ds_t of the
            whole loss.
    """

    steps: tuple[int, ...]
    norms: tuple[float, ...]


@dataclass(frozen=True)
class Neighbours(LayerDirection):
    """One layer, the lower, and the next above it in a module, of one direction.

    Attributes:
        cosine: of the gradients d_t of both, over all steps and rows; None where their states
            differ in width or a gradient is zero. Near 0 unless residual paths join them.
    """

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


def evenness(
    examined: ExaminedModel, run: ModelRun, before: Mapping[str, Tensor] | None = None
) -> Evenness:
    """Measure how evenly a model learns from one loss, or has learnt since `before`.

    Args:
        examined: the model as it is now.
        run: of `examined.run`, with the whole loss.
        before: parameter's name -> its earlier value, as a state_dict holds it; left out, the
            ratios are those of the gradient.

    Raises:
        OptionError: a parameter that trains is not in `before`, or a gradient is not finite.
        ShapeError: it has another shape there.
    """
    trained: dict[str, Tensor] = {
        n: p for n, p in examined.model.named_parameters() if p.requires_grad
    }
    if before is None:
        gradients = torch.autograd.grad(
            run.loss, [*trained.values()], retain_graph=True, materialize_grads=True
        )
        moved, old = dict(zip(trained, gradients, strict=True)), trained
    else:
        old = {n: _find_earlier(n, p, before) for n, p in trained.items()}
        moved = {n: p.detach() - old[n] for n, p in trained.items()}
    for name, v in moved.items():
        if not bool(v.isfinite().all()):
            raise OptionError(f"the gradient or update of parameter {name} is not finite")
    d = {p.key: p.gradients(run.loss) for p in run.paths}
    return Evenness(
        kind="gradient" if before is None else "update",
        shares=tuple(_measure_shares(examined, old, moved)),
        depth=tuple(_measure_depth(p, v) for p, v in zip(run.paths, d.values(), strict=True)),
        neighbours=tuple(_compare_neighbours(d)),
    )


def _find_earlier(name: str, now: Tensor, before: Mapping[str, Tensor]) -> Tensor:
    if name not in before:
        raise OptionError(f"before must hold every parameter that trains, it lacks {name}")
    if not isinstance(before[name], Tensor):
        raise OptionError(f"before must hold tensors, got {type(before[name]).__name__} as {name}")
    if before[name].shape != now.shape:
        raise ShapeError(
            f"{name} must have the shape {tuple(now.shape)} before as now, "
            f"got {tuple(before[name].shape)}"
        )
    return before[name].detach().to(now)


def _measure_shares(
    examined: ExaminedModel, old: Mapping[str, Tensor], moved: Mapping[str, Tensor]
) -> Iterator[Share]:
    places = _list_places(examined)
    for parameter, theta in old.items():
        if parameter not in places:
            yield Share(parameter, "", None, None, "", _find_ratio(moved[parameter], theta))
            continue
        name, layer, direction, gates = places[parameter]
        count = max(1, len(gates))
        blocks = zip(moved[parameter].chunk(count), theta.chunk(count), strict=True)
        for gate, (m, t) in zip(gates or ("",), blocks, strict=True):
            yield Share(parameter, name, layer, direction, gate, _find_ratio(m, t))


Place = tuple[str, int, int, tuple[str, ...]]


def _list_places(examined: ExaminedModel) -> dict[str, Place]:
    """Parameter's name in the model -> module, layer, direction and the gates of its rows."""
    places: dict[str, Place] = {}
    for name, module in examined.layers.items():
        layout = module.cell.layout
        gates = {"ih": layout.input_gates, "hh": layout.recurrent_gates}
        for layer in range(len(module.hidden_sizes)):
            for d in range(module.directions):
                names: dict[str, str] = examined.modules[name].weight_names(layer, d)
                for short, parameter in names.items():
                    rows = gates.get(short.removeprefix("weight_").removeprefix("bias_"), ())
                    places[f"{name}.{parameter}" if name else parameter] = (name, layer, d, rows)
    return places


def _find_ratio(moved: Tensor, theta: Tensor) -> float | None:
    size = float(theta.detach().double().norm())
    return float(moved.double().norm()) / size if size else None


def _measure_depth(path: Path, d: Tensor) -> Depth:
    """Each row's first, middle and last step; d ends with each row's last."""
    T, n = path.steps, path.alive.sum(0)
    n, d = n[n > 0], d[:, n > 0]
    rows = torch.arange(len(n), device=d.device)
    at = {0: torch.zeros_like(n), T // 2: n // 2, T - 1: n - 1}
    places = [T - 1 - t if path.direction else T - n + t for t in at.values()]
    norms = tuple(float(d[place, rows].double().norm()) for place in places)
    return Depth(path.name, path.layer, path.direction, tuple(at), norms)


def _compare_neighbours(d: Mapping[tuple[str, int, int], Tensor]) -> Iterator[Neighbours]:
    for (name, layer, direction), lower in d.items():
        upper = d.get((name, layer + 1, direction))
        if upper is None:
            continue
        cosine = None
        if upper.shape == lower.shape:
            a, b = lower.double().flatten(), upper.double().flatten()
            sizes = float(a.norm()), float(b.norm())
            cosine = float((a / sizes[0]) @ (b / sizes[1])) if all(sizes) else None
        yield Neighbours(name, layer, direction, cosine)
