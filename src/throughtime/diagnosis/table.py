"""A report in words and columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from throughtime.diagnosis.lag_gradient import LagGradient, Unseen

if TYPE_CHECKING:
    from throughtime.diagnosis.capacity import MemoryCapacity
    from throughtime.diagnosis.report import Missing, Module, Report

Placed = TypeVar("Placed", LagGradient, "MemoryCapacity")
"""What is of one layer and direction of a module."""


def table(report: Report) -> str:
    """The verdict, one line for each layer and direction, one for each other quantity, the gaps."""
    loss = "not finite" if report.loss is None else f"{report.loss:.3g}"
    lines = [
        f"{named(report)}: {steps_in_words(report)}, {report.rows} rows, lag {report.lag}, "
        f"loss {loss}",
        *(f"  {m.name or 'model'}: {described(m)}" for m in report.modules),
        "",
    ]
    lines += verdict(report)
    if report.lag_gradients:
        lines += ["", *_layers(report)]
    others = [*_weight_gradients(report), *_batches(report), *_learning(report)]
    if others:
        lines += ["", *others]
    if report.missing and report.lag_gradients:
        lines += ["", *(f"Not measured: {_gap(m)}" for m in report.missing)]
    return "\n".join(lines)


HEAD = (("layer", "", 24), ("K(1/e)", "steps", 8), ("K(1e-3)", "steps", 9),
        ("log10 rho", "at lag", 11), ("of torch", "at lag", 10), ("exponent", "nats/step", 11),
        ("tau > lag", "of units", 11), ("r^2 > 0.5", "steps", 11),
        ("capacity", "numbers", 10))  # fmt: skip
"""Each column with its unit and its width."""


def _layers(report: Report) -> Iterator[str]:
    for line in (0, 1):
        yield _line([str(column[line]) for column in HEAD]).rstrip()
    exponents = {(m.name, j.layer, j.direction): f"{j.lyapunov_nats_per_step[0]:+.3f}"
                 for m in report.modules for j in m.jacobians}  # fmt: skip
    shares = {(m.name, g.layer, g.direction): f"{g.share_above(report.lag):.0%}"
              for m in report.modules for g in m.gates}  # fmt: skip
    starts = {(g.name, g.layer, g.direction): _rho(g, report.lag) for g in report.torch_default}
    memories = {(c.name, c.layer, c.direction): c for c in report.capacities}
    rows: tuple[LagGradient | Unseen, ...] = (*report.lag_gradients, *report.unseen)
    for g in rows:
        at = (g.name, g.layer, g.direction)
        c = memories.get(at)
        memory = ("-", "-") if c is None else (str(c.memory_steps), f"{c.capacity:.1f}")
        yield _line([
            _where(g), *_reach(g, report.lag),
            *(v.get(at, "-") for v in (starts, exponents, shares)), *memory,
        ])  # fmt: skip


def _reach(g: LagGradient | Unseen, lag: int) -> tuple[str, str, str]:
    if not isinstance(g, LagGradient):
        return "not", "seen", "-"
    return _steps(g.horizon_e_steps), _steps(g.horizon_1e3_steps), _rho(g, lag)


def _line(cells: list[str]) -> str:
    """Cells in the columns of the head: the first to the left, the others to the right."""
    sides = "<" + ">" * (len(HEAD) - 1)
    return "".join(
        f"{cell:{side}{width}}" for cell, side, (*_, width) in zip(cells, sides, HEAD, strict=True)
    )


def _weight_gradients(report: Report) -> Iterator[str]:
    for w in report.weight_lags:
        yield (
            f"Weight gradient of {w.name or 'model'}{' backward' if w.direction else ''}: its part "
            f"up to lag {w.steps_to(0.99)} has a cosine of 0.99 with the whole."
        )


def _batches(report: Report) -> Iterator[str]:
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


def _learning(report: Report) -> Iterator[str]:
    if report.evenness is None:
        return
    known = [(s.ratio, f"{s.parameter} {s.gate}".strip())
             for s in report.evenness.shares if s.ratio]  # fmt: skip
    if known:
        (least, where), (most, there) = min(known), max(known)
        yield (
            f"{report.evenness.kind.capitalize()} beside the weights: from {least:.1e} ({where}) "
            f"to {most:.1e} ({there})."
        )


def verdict(report: Report) -> list[str]:
    """The troubles and cautions, a line each; or that there is none."""
    said = [f"{t.sentence} {t.advice}" for t in (*report.troubles, *report.cautions)]
    return said or ["No trouble found."]


def steps_in_words(report: Report) -> str:
    """T, or the shortest and longest row's."""
    if not report.lengths:
        return f"{report.steps} steps"
    return f"{min(report.lengths)} to {max(report.lengths)} steps"


def _gap(missing: Missing) -> str:
    of = f" of {missing.name}" if missing.name else ""
    return f"{missing.quantity}{of}: {missing.reason.rstrip('.')}."


def named(report: Report) -> str:
    """The model's class, and whether it was cured."""
    return f"{'cured ' if any(m.start for m in report.modules) else ''}{report.model}"


def described(module: Module) -> str:
    """Its cell, its layers with their units, and what a cure started it with."""
    sizes = module.hidden_sizes
    each = " and ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
    both = ", both directions" if any(g.direction for g in module.gates) else ""
    start = f"; started by throughtime.cure with {module.start}" if module.start else ""
    number = f"{len(sizes)} layer{'s' if len(sizes) > 1 else ''}"
    return f"{module.cell}, {number} of {each} units{both}{start}"


def compared(one: Report, other: Report) -> str:
    """Troubles, horizons, and gradients and memory at the first report's lag, side by side."""
    both = (one, other)
    troubles = (", ".join(dict.fromkeys(t.kind for t in r.troubles)) or "none" for r in both)
    lag = one.lag
    lines = [
        f"{' -> '.join(map(named, both))}; trouble: {' -> '.join(troubles)}",
        f"{'layer':<24}{'K(1e-3), steps':>18}{f'log10 rho({lag})':>20}{f'r^2({lag})':>18}",
    ]
    found, held = (dict(_by_place(r.lag_gradients)) for r in both), [_r2(r, lag) for r in both]
    old, new = found
    for at, g in old.items():
        if at not in new:
            lines.append(f"{_where(g):<24}{'not in the other':>18}")
            continue
        pair = (g, new[at])
        steps = " -> ".join(_steps(v.horizon_1e3_steps) for v in pair)
        rho = " -> ".join(_rho(v, lag) for v in pair)
        r2 = " -> ".join(h.get(at, "-") for h in held)
        lines.append(f"{_where(g):<24}{steps:>18}{rho:>20}{r2:>18}")
    return "\n".join(lines)


def _by_place(found: Iterable[Placed]) -> Iterator[tuple[tuple[str, int, int], Placed]]:
    return (((v.name, v.layer, v.direction), v) for v in found)


def _r2(report: Report, lag: int) -> dict[tuple[str, int, int], str]:
    """What each layer holds of the input so long ago."""
    return {at: f"{c.r2_by_lag[lag]:.2g}" for at, c in _by_place(report.capacities)
            if lag < len(c.r2_by_lag)}  # fmt: skip


def _rho(g: LagGradient, lag: int) -> str:
    return f"{g.log10_rho_by_lag[lag]:.2f}" if lag < len(g.log10_rho_by_lag) else "-"


def _where(g: LagGradient | Unseen) -> str:
    return f"{g.name or 'model'}.{g.layer}{' backward' if g.direction else ''}"


def _steps(horizon: int | None) -> str:
    return "none" if horizon is None else str(horizon)
