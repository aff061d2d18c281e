"""How a run is shown: its figures on the terminal, its memory report, its page and its charts.

The page says what the run reached, how it learned, and how far back it learned. Its charts are
also saved as files where they are asked for, drawn by matplotlib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import throughtime
from throughtime.diagnosis.report import Report
from throughtime.errors import import_extra
from throughtime.tasks import Task
from throughtime.tasks.picture import Curve, Picture, Plot, draw_knowledge
from throughtime.tasks.task import Score

if TYPE_CHECKING:
    from rich.console import Console

    from throughtime.diagnosis.report.chart import Chart
    from throughtime.diagnosis.report.page import Panel, Table
    from throughtime.train.run import Run


def open_console(stderr: bool = False) -> Console:
    """The terminal, on which `[red]` and `:key:` are shown as they are."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)


def show_table(rows: Iterable[Sequence[str]], *headings: str) -> None:
    """Prints rows in columns, one a line."""
    from rich.table import Table as Lines

    lines = Lines(*headings, show_header=bool(headings), box=None, pad_edge=False)
    for row in rows:
        lines.add_row(*row)
    if lines.columns:
        open_console().print(lines)


def show_score(
    task: Task, score: Score, split: str, baselines: Mapping[str, Mapping[str, float]]
) -> None:
    """Prints the split, the rule, the figures with the baselines', and examples with the truth."""
    open_console().print(f"\n{score.split}\n{score.rule}\n")
    figures = [
        (name, task.format_metric(value),
         *(task.format_metric(one[name]) if name in one else "" for one in baselines.values()))
        for name, value in score.metrics.items()
    ]  # fmt: skip
    show_table(figures, "figure", split, *baselines)
    print()
    examples = [
        (one.given, one.answer, one.truth, "right" if one.right else "wrong")
        for one in score.examples
    ]
    show_table(examples, "given", "answer", "truth", "")
    if "chance" not in baselines and (sentence := _warn_if_beaten(task, score, baselines)):
        print(f"\n{sentence}")


def _warn_if_beaten(task: Task, score: Score, baselines: Mapping[str, Mapping[str, float]]) -> str:
    """The sentence on a net that is no better than a baseline by the first figure; or nothing."""
    headline = next(iter(score.metrics))
    sign = -1 if task.higher_is_better else 1
    best = min(baselines, key=lambda name: sign * baselines[name][headline])
    value, bar = score.metrics[headline], baselines[best][headline]
    if sign * value < sign * bar:
        return ""
    return (
        f"The net does not beat the best baseline: {headline} {task.format_metric(value)}, and "
        f"{best} has {task.format_metric(bar)}; take that one, or train longer, say with "
        "--preset full."
    )


BATCHES, ROWS = 8, 16
"""Of a run's training data, so that its report takes seconds."""


def report_run(
    task: Task, model: nn.Module, *, lag: int | None = None, clip: float | None = None,
    truncation: int | None = None,
) -> Report:  # fmt: skip
    """The report of a run's model on some of its training data; it clips as the run did."""
    recipe, case = task.recipe, task.prepare_diagnosis(model, BATCHES, ROWS)
    if clip is None and recipe.clip == "norm":
        clip = recipe.clip_threshold
    return throughtime.diagnose(
        case.model, case.batches, case.loss, lag, clip=clip, truncation=truncation
    )


def keep_report(report: Report, folder: Path) -> None:
    """Writes report.json and report.html and says where.

    Raises MissingExtra where plotly is not installed; report.json is written before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.html"):
        report.save(folder / name)
    print(f"report: {folder / 'report.html'}")


_FEW = 3  # rows of a table that are also given in words; names that fit without a slant
_INCHES, _DOTS, _LONGEST = (7.0, 3.5), 144, 60  # of a plot in a file; letters of the file's name


def keep_page(
    run: Run, task: Task, model: nn.Module, report: Report | None, reason: str = ""
) -> None:
    """Writes report.json, and report.html with the figures of a run that has ended.

    Where there is no report of its memory, `reason` says why. Raises as `keep_report`.
    """
    if report is not None:
        report.save(run.folder / "report.json")
    from throughtime.diagnosis.report.page import write_run_page

    results = json.loads(run.results.read_text("utf-8"))
    pictures = list_pictures(run, task, model, results)
    panels = [_make_panel("ABCDEFGHIJ"[n], one) for n, one in enumerate(pictures)]
    title = f"{task.name}: {run.folder.resolve().name}"
    text = write_run_page(
        title, _list_facts(run, results), _make_figures(results), panels, report, reason
    )
    (run.folder / "report.html").write_text(text, "utf-8")
    print(f"report: {run.folder / 'report.html'}")


def list_pictures(run: Run, task: Task, model: nn.Module, results: dict[str, Any]) -> list[Picture]:
    """All that is shown of a run but its figures and its memory."""
    return [
        draw_learning(run, task),
        *draw_flow(run),
        *task.pictures(model),
        *_draw_tables(results),
    ]


def keep_plots(run: Run, task: Task, model: nn.Module, ending: str) -> None:
    """Writes every chart of the page, those of the memory aside, as plots/NUMBER-NAME.png or .svg.

    Raises MissingExtra where matplotlib is not installed.
    """
    results = json.loads(run.results.read_text("utf-8"))
    plots = [one for picture in list_pictures(run, task, model, results) for one in picture.plots]
    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    for number, plot in enumerate(plots, start=1):
        words = re.sub(r"[^a-z0-9]+", "-", f"{plot.says} {plot.of}".casefold()).strip("-")
        save_plot(plot, folder / f"{number:02}-{words[:_LONGEST].strip('-')}.{ending}")
    print(f"plots: {folder} ({len(plots)} {ending.upper()} files)")


def save_plot(plot: Plot, file: Path) -> None:
    """Draws a plot into a file, by the ending of its name; MissingExtra without matplotlib."""
    rc_context = import_extra("matplotlib", "plots").rc_context
    with rc_context({"svg.hashsalt": "plots", "text.parse_math": False}):
        figure = import_extra("matplotlib.figure", "plots").Figure(
            figsize=_INCHES, layout="constrained"
        )
        axes = figure.add_subplot(xlabel=plot.x, ylabel=plot.y, title=plot.of or plot.says)
        axes.spines[["top", "right"]].set_visible(False)
        (_draw_map if plot.rows else _draw_curves)(figure, axes, plot)
        if plot.columns:
            slant: dict[str, Any] = (
                {"rotation": 45, "ha": "right"} if len(plot.columns) > _FEW else {}
            )
            axes.set_xticks(range(len(plot.columns)), plot.columns, **slant)
        dated = {"Date": None} if file.suffix == ".svg" else {}
        figure.savefig(file, dpi=_DOTS, metadata=dated)


def _draw_map(figure: Any, axes: Any, plot: Plot) -> None:
    image = axes.imshow([list(values) for _, values in plot.rows], aspect="auto", cmap="cividis")
    axes.set_yticks(range(len(plot.rows)), [name for name, _ in plot.rows])
    figure.colorbar(image, label="share")


def _draw_curves(figure: Any, axes: Any, plot: Plot) -> None:
    from throughtime.diagnosis.report.chart import SERIES, light

    axes.grid(color=light("grid"))
    axes.set_axisbelow(True)
    for number, curve in enumerate(plot.curves):
        colour = light("grey") if curve.beside else SERIES[number % len(SERIES)][0]
        if curve.kind == "band":
            axes.fill_between(curve.x, curve.y, curve.high, color=light("band"), label=curve.name)
        else:
            form = {"marker": "o", "linestyle": ""} if curve.kind == "points" else {}
            dashed = {"linestyle": "--"} if curve.beside and not form else {}
            axes.plot(curve.x, curve.y, color=colour, label=curve.name, **form, **dashed)
    if plot.line:
        height, words = plot.line
        axes.axhline(height, color=light("mark"), linestyle=":", linewidth=1)
        place = axes.get_yaxis_transform()
        axes.text(0.99, height, words, transform=place, ha="right", va="bottom", fontsize="small")
    if len(plot.curves) > 1:
        axes.legend(frameon=False)


def draw_learning(run: Run, task: Task) -> Picture:
    """Loss of the training steps, and the figure that weights are chosen by."""
    rows = _read_rows(run)
    loss = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    chosen = [(row["step"], row[task.monitor]) for row in rows if "split" in row]
    best = min(chosen, key=lambda row: row[1], default=(0, float("nan")))
    sentence = f"The best validation was at step {best[0]}: {task.monitor} {best[1]:.4g}."
    return Picture(
        title="How did it learn?",
        lead="The loss of the training steps, each point the mean since the one before; and the "
        "figure of the validation part that the weights are chosen by, less is better.",
        says=(sentence,) if chosen else (),
        plots=(
            Plot("loss of training by step", "step", "loss", (_make_curve("loss", loss),)),
            Plot("validation by step", "step", task.monitor, (_make_curve(task.monitor, chosen),)),
        ),
        head=("step", task.monitor),
        table=tuple(chosen),
    )


_FLOW = (
    ("horizon_steps", "how many steps back the gradient stays above 1/1000", "steps back"),
    ("log10_rho", "what is left of the gradient at the first step", "log10 rho"),
    ("saturated", "the largest share of a gate's values at its ends", "share"),
    ("update_spread", "the largest of the matrices' updates over the smallest", "times"),
)


def draw_flow(run: Run) -> list[Picture]:
    """How far back gradients reached as it trained, where the run was watched."""
    rows = [row for row in _read_rows(run) if "flow" in row]
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row["flow"]))
    plots = tuple(
        Plot(f"{words} by step", "step", unit, tuple(
            _make_curve(name, [(r["step"], r["flow"][name]) for r in rows if name in r["flow"]])
            for name in names if name.partition("/")[0] == kind
        ))
        for kind, words, unit in _FLOW
        if any(name.partition("/")[0] == kind for name in names)
    )  # fmt: skip
    return [Picture(
        title="How far back did it learn as it trained?",
        lead="Measured in training steps, on a few rows of their batches, for each layer and "
        "direction.",
        says=tuple(sentence for row in rows for sentence in row["says"]),
        plots=plots,
        head=("step", *names),
        table=tuple((r["step"], *(r["flow"].get(n, float("nan")) for n in names)) for r in rows),
    )]  # fmt: skip


def _read_rows(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text("utf-8").splitlines()]


def _make_curve(name: str, rows: list[tuple[float, float]]) -> Curve:
    return Curve(name, [step for step, _ in rows], [value for _, value in rows])


def _draw_tables(results: dict[str, Any]) -> list[Picture]:
    """The tables in a run's results, which are lists of rows."""
    tables = {name: rows for name, rows in results.items() if isinstance(rows, list) and rows}
    return [
        draw_knowledge(rows) if name == "probe" else Picture(
            title=f"In numbers: {name.replace('_', ' ')}", lead="Beside the figures above.",
            says=tuple(map(_describe_row, rows)) if len(rows) <= _FEW else (),
            head=tuple(rows[0]), table=tuple(tuple(row.values()) for row in rows),
        )
        for name, rows in tables.items()
    ]  # fmt: skip


def _describe_row(row: dict[str, Any]) -> str:
    cells = (f"{n} {f'{v:.4g}' if isinstance(v, float) else v}" for n, v in row.items())
    return f"{', '.join(cells)}."


def _list_facts(run: Run, results: dict[str, Any]) -> dict[str, str]:
    recipe = run.recipe
    return {
        "Task": recipe.task,
        "Data": Path(str(getattr(recipe, "data", ""))).name,
        "Cell": recipe.cell,
        "Layers": f"{recipe.layers} of {recipe.hidden}",
        "Parameters": f"{results['parameters']:,}",
        "Steps": f"{results['steps']:,}",
        "Seconds": f"{results['wall_seconds']:.0f}",
        "Measured on": str(results["split"]),
    }


def _make_figures(results: dict[str, Any]) -> Table:
    from throughtime.diagnosis.report.page import Table

    baselines = results["baselines"]
    rows = tuple(
        (name, value, *(baselines[one][name] for one in baselines))
        for name, value in results["metrics"].items()
    )
    return Table(results["test"]["rule"], ("figure", "test", *baselines), rows)


def _make_panel(letter: str, picture: Picture) -> Panel:
    from throughtime.diagnosis.report.page import Panel, Table

    tables = (Table(picture.title, picture.head, picture.table),) if picture.table else ()
    return Panel(
        letter, picture.title, picture.lead, says=picture.says,
        charts=tuple(map(_make_chart, picture.plots)), tables=tables,
    )  # fmt: skip


def _make_chart(plot: Plot) -> Chart:
    from throughtime.diagnosis.report.chart import Chart

    chart = Chart(plot.says, plot.x, plot.y, of=plot.of)
    if plot.rows:
        numbers = [list(values) for _, values in plot.rows]
        chart.heat(range(len(numbers[0])), numbers, "share")
        chart.rows([name for name, _ in plot.rows])
        chart.columns(plot.columns)
        return chart
    for number, curve in enumerate(plot.curves):
        colour = None if curve.beside else number
        if curve.kind == "band":
            chart.band(curve.name, curve.x, curve.y, curve.high)
        elif curve.kind == "points":
            chart.points(curve.name, curve.x, curve.y, colour)
        else:
            chart.line(curve.name, curve.x, curve.y, colour)
    if plot.line:
        chart.mark_y(*plot.line)
    chart.columns(plot.columns)
    return chart
