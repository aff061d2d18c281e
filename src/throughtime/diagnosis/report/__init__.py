"""The report: the numbers of a diagnosis, as data, as JSON and as text; `page` draws them."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from throughtime.diagnosis.observe import Key, LayerDirection
from throughtime.diagnosis.quantities.capacity import MemoryCapacity
from throughtime.diagnosis.quantities.clipping import Clipping
from throughtime.diagnosis.quantities.connectivity import Connectivity
from throughtime.diagnosis.quantities.evenness import Evenness
from throughtime.diagnosis.quantities.gates import GateTimes
from throughtime.diagnosis.quantities.jacobians import Jacobians
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, Unseen
from throughtime.diagnosis.quantities.weight_lags import WeightLags
from throughtime.errors import OptionError

QUANTITIES = (
    "lag_gradients", "bands", "torch_default", "connectivity", "modules", "capacities",
    "weight_lags", "clipping", "evenness",
)  # fmt: skip
"""The fields of a report that are measured."""


@dataclass(frozen=True)
class ModuleReport:
    """One recurrent module of the model.

    Attributes:
        name: its name; empty when it is the model.
        cell: its cell in words.
        hidden_sizes: units of each layer, of one direction.
        start: what `throughtime.cure` started it with, while it has those weights; else empty.
        jacobians: of each layer and direction, on two rows; empty for 10 steps or fewer.
        gates: time scales and saturation of each layer and direction.
    """

    name: str
    cell: str
    hidden_sizes: tuple[int, ...]
    start: str
    jacobians: tuple[Jacobians, ...]
    gates: tuple[GateTimes, ...]


@dataclass(frozen=True)
class Band(LayerDirection):
    """The lag gradient's spread over batches, of one layer and direction.

    Attributes:
        batches: how many were measured, including the report's.
        lowest_log10_rho_by_lag: the least of log10 rho(k), from k = 0 to the last lag that all
            of them have.
        highest_log10_rho_by_lag: the greatest.
    """

    batches: int
    lowest_log10_rho_by_lag: tuple[float, ...]
    highest_log10_rho_by_lag: tuple[float, ...]


@dataclass(frozen=True)
class Missing:
    """A quantity that could not be measured; its place in the report is empty or None.

    Attributes:
        quantity: the report's field, or a field of a module.
        name: the module's name where it is one module's; else empty.
        reason: why, as a sentence.
    """

    quantity: str
    name: str
    reason: str


@dataclass(frozen=True)
class Trouble:
    """One trouble and what would change it.

    Attributes:
        kind: "not finite", "not seen", "exploding", "vanishing", "written too weakly",
            "frozen gates", "dead units", "truncation" or "clipping"; of a caution "remembers
            little".
        name: the module's name in the model; empty when it is the model or not one module's.
        sentence: the trouble with its number.
        advice: what to change, with the number measured after the change where one can be.
        log10_rho_before: for exploding and vanishing, log10 rho(lag) of the layer; else None.
        log10_rho_after: the same on a copy that was started anew; None where it could not be
            started or looked at.
    """

    kind: str
    name: str
    sentence: str
    advice: str
    log10_rho_before: float | None = None
    log10_rho_after: float | None = None


@dataclass(frozen=True)
class Report:
    """How far back a model learns, why, and what would change it.

    Measured on the first batch; `bands` on up to three, `clipping` on up to sixteen.

    Attributes:
        model: its class.
        steps: T, of the longest row.
        rows: B, all sequences of the first recurrent module.
        lag: how far back the task needs, steps.
        loss: its value; None where it is not finite.
        truncation: steps that the user's back-propagation reaches; None where unknown.
        lag_gradients: of each layer and direction that the last step's loss depends on.
        bands: their spread over batches; empty with a single batch.
        torch_default: the same lag gradients with the recurrent layers at torch's own start.
        connectivity: of each recurrent module.
        modules: the recurrent modules.
        capacities: what each layer and direction remembers.
        weight_lags: where each module's weight gradient comes from, on two rows.
        clipping: what clipping does, or the norms and the noise alone.
        evenness: how evenly the model learns.
        troubles: what is wrong, in the order of the rules; empty when nothing is.
        missing: what could not be measured, and why.
        cautions: findings that are no trouble, but no health either.
        lengths: steps of each row, where they differ.
        unseen: layers and directions whose last step the loss does not see.
        parameters: how many numbers the model has that can train, including frozen ones.
        version: of throughtime, that measured it.
        made: when, in UTC; no part of what makes two reports equal.
    """

    model: str
    steps: int
    rows: int
    lag: int
    loss: float | None
    truncation: int | None
    lag_gradients: tuple[LagGradient, ...] = ()
    bands: tuple[Band, ...] = ()
    torch_default: tuple[LagGradient, ...] = ()
    connectivity: tuple[Connectivity, ...] = ()
    modules: tuple[ModuleReport, ...] = ()
    capacities: tuple[MemoryCapacity, ...] = ()
    weight_lags: tuple[WeightLags, ...] = ()
    clipping: Clipping | None = None
    evenness: Evenness | None = None
    troubles: tuple[Trouble, ...] = ()
    missing: tuple[Missing, ...] = ()
    cautions: tuple[Trouble, ...] = ()
    lengths: tuple[int, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    parameters: int | None = None
    version: str = ""
    made: str = field(default="", compare=False)

    def to_json(self) -> str:
        """All numbers as JSON; what is not finite as a word."""
        return json.dumps(_simplify(self), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            ValueError: the text is not of a report.
        """
        try:
            report: Report = _build(Report, json.loads(text))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the text is not the JSON of a Report: {error!r}") from error
        return report

    def save(self, file: str | PathLike[str]) -> None:
        """Write one self-contained HTML page, or the JSON, by the name's ending; makes folders.

        Raises:
            OptionError: another ending.
            MissingExtra: a page without plotly, which the extra `train` installs.
        """
        path = Path(file)
        if path.suffix not in (".html", ".json"):
            raise OptionError(f"a report is saved as .html or .json, got {path.name!r}")
        if path.suffix == ".json":
            text = self.to_json()
        else:
            from throughtime.diagnosis.report.page import write_page  # and plotly

            text = write_page(self)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def compare(self, other: Report) -> str:
        """This report's horizon and gradients against another's, as a table."""
        return compare_reports(self, other)

    def __str__(self) -> str:
        return write_table(self)


def _simplify(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _simplify(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_simplify(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _build(kind: Any, value: Any) -> Any:
    """What a type hint says, of what JSON has."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_build(k, v) for k, v in zip(each, value, strict=True))
    if isinstance(kind, types.UnionType):
        return None if value is None else _build(get_args(kind)[0], value)
    return float(value) if kind is float else value


def write_table(report: Report) -> str:
    """The verdict, a line for each layer and direction, one for each other quantity, the gaps."""
    loss = "not finite" if report.loss is None else f"{report.loss:.3g}"
    lines = [
        f"{name_model(report)}: {write_steps(report)}, {report.rows} rows, lag {report.lag}, "
        f"loss {loss}",
        *(f"  {m.name or 'model'}: {describe(m)}" for m in report.modules),
        "",
    ]
    lines += list_verdict(report)
    if report.lag_gradients:
        lines += ["", *_write_layers(report)]
    others = [*_write_weight_gradients(report), *_write_batches(report), *_write_learning(report)]
    if others:
        lines += ["", *others]
    if report.missing and report.lag_gradients:
        lines.append("")
        for m in report.missing:
            of = f" of {m.name}" if m.name else ""
            lines.append(f"Not measured: {m.quantity}{of}: {m.reason.rstrip('.')}.")
    return "\n".join(lines)


HEAD = (("layer", "", 24), ("K(1/e)", "steps", 8), ("K(1e-3)", "steps", 9),
        ("log10 rho", "at lag", 11), ("of torch", "at lag", 10), ("exponent", "nats/step", 11),
        ("tau > lag", "of units", 11), ("r^2 > 0.5", "steps", 11),
        ("capacity", "numbers", 10))  # fmt: skip
"""Each column with its unit and its width."""


def _write_layers(report: Report) -> Iterator[str]:
    for line in (0, 1):
        yield _write_line([str(column[line]) for column in HEAD]).rstrip()
    exponents = {(m.name, j.layer, j.direction): f"{j.lyapunov_nats_per_step[0]:+.3f}"
                 for m in report.modules for j in m.jacobians}  # fmt: skip
    shares = {(m.name, g.layer, g.direction): f"{g.share_above(report.lag):.0%}"
              for m in report.modules for g in m.gates}  # fmt: skip
    starts = {g.key: _write_rho(g, report.lag) for g in report.torch_default}
    memories = {c.key: c for c in report.capacities}
    rows: tuple[LagGradient | Unseen, ...] = (*report.lag_gradients, *report.unseen)
    for g in rows:
        at = g.key
        c = memories.get(at)
        memory = ("-", "-") if c is None else (str(c.memory_steps), f"{c.capacity:.1f}")
        yield _write_line([
            make_label(at), *_write_reach(g, report.lag),
            *(v.get(at, "-") for v in (starts, exponents, shares)), *memory,
        ])  # fmt: skip


def _write_reach(g: LagGradient | Unseen, lag: int) -> tuple[str, str, str]:
    if not isinstance(g, LagGradient):
        return "not", "seen", "-"
    near, far = _write_horizon(g.horizon_e_steps), _write_horizon(g.horizon_1e3_steps)
    return near, far, _write_rho(g, lag)


def _write_line(cells: list[str]) -> str:
    """Cells in the columns of the head: the first to the left, the others to the right."""
    sides = "<" + ">" * (len(HEAD) - 1)
    return "".join(
        f"{cell:{side}{width}}" for cell, side, (*_, width) in zip(cells, sides, HEAD, strict=True)
    )


def _write_weight_gradients(report: Report) -> Iterator[str]:
    for w in report.weight_lags:
        yield (
            f"Weight gradient of {w.name or 'model'}{' backward' if w.direction else ''}: its part "
            f"up to lag {w.steps_to(0.99)} has a cosine of 0.99 with the whole."
        )


def _write_batches(report: Report) -> Iterator[str]:
    c = report.clipping
    if c is None:
        return
    yield (
        f"Gradient of {len(c.norms)} batches: median norm {c.median_norm:.3g}, cosine of its "
        f"halves {c.split_half_cosine:.2f}, noise scale {c.noise_scale_batches:.2g} batches."
    )
    if c.threshold is not None:
        yield (
            f"Clipped at {c.threshold:.3g}: {c.clip_rate:.0%} of the batches, cosine of the mean "
            f"{c.mean_cosine:.2f}, its bias {c.mean_bias:.2f}."
        )


def _write_learning(report: Report) -> Iterator[str]:
    if report.evenness is None:
        return
    known = [(s.ratio, f"{s.parameter} {s.gate}".strip())
             for s in report.evenness.shares if s.ratio]  # fmt: skip
    if known:
        (least, where), (most, place) = min(known), max(known)
        yield (
            f"{report.evenness.kind.capitalize()} over the weights: from {least:.1e} ({where}) "
            f"to {most:.1e} ({place})."
        )


def list_verdict(report: Report) -> list[str]:
    """The troubles and cautions, a line each; or that there is none."""
    sentences = [f"{t.sentence} {t.advice}" for t in (*report.troubles, *report.cautions)]
    return sentences or ["No trouble found."]


def write_steps(report: Report) -> str:
    """T, or the shortest and longest row's."""
    if not report.lengths:
        return f"{report.steps} steps"
    return f"{min(report.lengths)} to {max(report.lengths)} steps"


def name_model(report: Report) -> str:
    """The model's class, and whether it was cured."""
    return f"{'cured ' if any(m.start for m in report.modules) else ''}{report.model}"


def describe(module: ModuleReport) -> str:
    """A module's cell, its layers with their units, and the start that a cure gave it."""
    sizes = module.hidden_sizes
    each = " and ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
    both = ", both directions" if any(g.direction for g in module.gates) else ""
    start = f"; started by throughtime.cure with {module.start}" if module.start else ""
    number = f"{len(sizes)} layer{'s' if len(sizes) > 1 else ''}"
    return f"{module.cell}, {number} of {each} units{both}{start}"


def compare_reports(one: Report, other: Report) -> str:
    """Troubles, horizons, and gradients and memory at the first report's lag, side by side."""
    both = (one, other)
    troubles = (", ".join(dict.fromkeys(t.kind for t in r.troubles)) or "none" for r in both)
    lag = one.lag
    lines = [
        f"{' -> '.join(map(name_model, both))}; trouble: {' -> '.join(troubles)}",
        f"{'layer':<24}{'K(1e-3), steps':>18}{f'log10 rho({lag})':>20}{f'r^2({lag})':>18}",
    ]
    old, new = ({g.key: g for g in r.lag_gradients} for r in both)
    memories = [{c.key: f"{c.r2_by_lag[lag]:.2g}" for c in r.capacities if lag < len(c.r2_by_lag)}
                for r in both]  # fmt: skip
    for at, g in old.items():
        if at not in new:
            lines.append(f"{make_label(at):<24}{'not in the other':>18}")
            continue
        pair = (g, new[at])
        steps = " -> ".join(_write_horizon(v.horizon_1e3_steps) for v in pair)
        rho = " -> ".join(_write_rho(v, lag) for v in pair)
        r2 = " -> ".join(h.get(at, "-") for h in memories)
        lines.append(f"{make_label(at):<24}{steps:>18}{rho:>20}{r2:>18}")
    return "\n".join(lines)


def _write_rho(g: LagGradient, lag: int) -> str:
    return f"{g.log10_rho_by_lag[lag]:.2f}" if lag < len(g.log10_rho_by_lag) else "-"


def make_label(key: Key) -> str:
    """A layer and direction as the table and the page call it."""
    name, layer, direction = key
    return f"{name or 'model'}.{layer}{' backward' if direction else ''}"


def _write_horizon(horizon: int | None) -> str:
    return "none" if horizon is None else str(horizon)
