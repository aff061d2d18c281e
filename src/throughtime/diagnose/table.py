"""A report in words and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.diagnose.lag_gradient import LagGradient
    from throughtime.diagnose.report import Report


def table(report: Report) -> str:
    """The verdict, then one line for each layer and direction."""
    lines = [
        f"{report.model}: {report.steps} steps, {report.rows} rows, lag {report.lag}, "
        f"loss {'not finite' if report.loss is None else f'{report.loss:.4g}'}",
        "",
    ]
    lines += [f"{t.sentence} {t.advice}" for t in report.troubles] or ["No trouble found."]
    lines += ["", f"{'layer':<24}{'K(1/e)':>8}{'K(1e-3)':>9}{'log10 rho':>11}{'exponent':>10}"
                  f"{'tau > lag':>11}"]  # fmt: skip
    exponents = {(m.name, j.layer, j.direction): j.lyapunov_nats_per_step[0]
                 for m in report.modules for j in m.jacobians}  # fmt: skip
    shares = {(m.name, g.layer, g.direction): g.share_above(report.lag)
              for m in report.modules for g in m.gates}  # fmt: skip
    for g in report.lag_gradients:
        at = (g.name, g.layer, g.direction)
        exponent = f"{exponents[at]:+.3f}" if at in exponents else "-"
        lines.append(
            f"{_where(g):<24}{_steps(g.horizon_e_steps):>8}{_steps(g.horizon_1e3_steps):>9}"
            f"{g.log10_rho_by_lag[report.lag]:>11.2f}{exponent:>10}{shares[at]:>11.0%}"
        )
    return "\n".join(lines)


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
