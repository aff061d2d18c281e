"""A report as text: its verdict, its table, and its comparison with another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from throughtime.diagnosis.observe import Key
from throughtime.diagnosis.quantities.lag_gradient import LagGradient, Unseen

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Missing, ModuleReport, Report


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
        lines += ["", *(f"Not measured: {_write_gap(m)}" for m in report.missing)]
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


def _write_gap(missing: Missing) -> str:
    of = f" of {missing.name}" if missing.name else ""
    return f"{missing.quantity}{of}: {missing.reason.rstrip('.')}."


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
    memories = [_r2(r, lag) for r in both]
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


def _r2(report: Report, lag: int) -> dict[Key, str]:
    """r^2 of each layer at a lag."""
    return {c.key: f"{c.r2_by_lag[lag]:.2g}" for c in report.capacities
            if lag < len(c.r2_by_lag)}  # fmt: skip


def _write_rho(g: LagGradient, lag: int) -> str:
    return f"{g.log10_rho_by_lag[lag]:.2f}" if lag < len(g.log10_rho_by_lag) else "-"


def make_label(key: Key) -> str:
    """A layer and direction as the table and the page call it."""
    name, layer, direction = key
    return f"{name or 'model'}.{layer}{' backward' if direction else ''}"


def _write_horizon(horizon: int | None) -> str:
    return "none" if horizon is None else str(horizon)
