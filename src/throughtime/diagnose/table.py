"""A report in words and columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.diagnose.lag_gradient import LagGradient
    from throughtime.diagnose.report import Missing, Report


def table(report: Report) -> str:
    """The verdict, one line for each layer and direction, one for each other quantity, the gaps."""
    loss = "not finite" if report.loss is None else f"{report.loss:.4g}"
    lines = [
        f"{report.model}: {report.steps} steps, {report.rows} rows, lag {report.lag}, loss {loss}",
        "",
    ]
    lines += [f"{t.sentence} {t.advice}" for t in report.troubles] or ["No trouble found."]
    if report.lag_gradients:
        lines += ["", *_layers(report)]
    others = [*_weight_gradients(report), *_batches(report), *_learning(report)]
    if others:
        lines += ["", *others]
    if report.missing and report.lag_gradients:
        lines += ["", *(f"Not measured: {_gap(m)}" for m in report.missing)]
    return "\n".join(lines)


def _layers(report: Report) -> Iterator[str]:
    yield (
        f"{'layer':<24}{'K(1/e)':>8}{'K(1e-3)':>9}{'log10 rho':>11}{'of torch':>10}"
        f"{'exponent':>10}{'tau > lag':>11}{'r^2 > 0.5':>11}{'capacity':>10}"
    )
    exponents = {(m.name, j.layer, j.direction): f"{j.lyapunov_nats_per_step[0]:+.3f}"
                 for m in report.modules for j in m.jacobians}  # fmt: skip
    shares = {(m.name, g.layer, g.direction): f"{g.share_above(report.lag):.0%}"
              for m in report.modules for g in m.gates}  # fmt: skip
    starts = {(g.name, g.layer, g.direction): _rho(g, report.lag) for g in report.torch_default}
    memories = {(c.name, c.layer, c.direction): c for c in report.capacities}
    for g in report.lag_gradients:
        at = (g.name, g.layer, g.direction)
        c = memories.get(at)
        memory, capacity = ("-", "-") if c is None else (c.memory_steps, f"{c.capacity:.1f}")
        yield (
            f"{_where(g):<24}{_steps(g.horizon_e_steps):>8}{_steps(g.horizon_1e3_steps):>9}"
            f"{_rho(g, report.lag):>11}{starts.get(at, '-'):>10}{exponents.get(at, '-'):>10}"
            f"{shares.get(at, '-'):>11}{memory:>11}{capacity:>10}"
        )


def _weight_gradients(report: Report) -> Iterator[str]:
    for w in report.weight_lags:
        yield (
            f"Weight gradient of {w.name or 'model'}{' backward' if w.direction else ''}: its part "
            f"of the first {w.steps_to(0.99)} lags has a cosine of 0.99 with the whole."
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
             for s in report.evenness.shares if s.ratio is not None]  # fmt: skip
    if known:
        (least, where), (most, there) = min(known), max(known)
        yield (
            f"{report.evenness.kind.capitalize()} beside the weights: from {least:.1e} ({where}) "
            f"to {most:.1e} ({there})."
        )


def _gap(missing: Missing) -> str:
    return f"{missing.quantity}{f' of {missing.name}' if missing.name else ''}: {missing.reason}."


def compared(one: Report, other: Report) -> str:
    """Horizons and log10 rho at the first report's lag, side by side."""
    others = {(g.name, g.layer, g.direction): g for g in other.lag_gradients}
    lines = [f"{'layer':<24}{'K(1e-3)':>18}{f'log10 rho({one.lag})':>22}"]
    for g in one.lag_gradients:
        new = others.get((g.name, g.layer, g.direction))
        if new is None:
            lines.append(f"{_where(g):<24}{'not in the other':>18}")
            continue
        steps = f"{_steps(g.horizon_1e3_steps)} -> {_steps(new.horizon_1e3_steps)}"
        rho = " -> ".join(_rho(v, one.lag) for v in (g, new))
        lines.append(f"{_where(g):<24}{steps:>18}{rho:>22}")
    return "\n".join(lines)


def _rho(g: LagGradient, lag: int) -> str:
    return f"{g.log10_rho_by_lag[lag]:.2f}" if lag < len(g.log10_rho_by_lag) else "-"


def _where(g: LagGradient) -> str:
    return f"{g.name or 'model'}.{g.layer}{' backward' if g.direction else ''}"


def _steps(horizon: int | None) -> str:
    return "none" if horizon is None else str(horizon)
