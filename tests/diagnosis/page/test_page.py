"""The page: every number of the report stands in it, it loads nothing, and it escapes names."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import throughtime
from tests.diagnosis.page.reading import Page
from tests.diagnosis.page.sample import NAME, PLACES, bare, sample
from tests.house.source import ROOT, imports, modules
from throughtime.diagnosis.quantities.lag_gradient import Unseen
from throughtime.diagnosis.report import Report, Trouble
from throughtime.diagnosis.report.chart import list_powers, read_library
from throughtime.diagnosis.report.page import show, write_page
from throughtime.errors import MissingExtra, OptionError

REPORT = sample()
LABELS = [f"{n or 'model'}.{i}{' backward' if d else ''}" for n, i, d in PLACES]
IN_WORDS = {"layer", "direction", "log10_rho_before", "log10_rho_after", "rows_by_lag"}
"""Fields that stand in labels or in the verdict's sentences."""


@pytest.fixture(scope="module")
def text() -> str:
    return write_page(REPORT)


@pytest.fixture(scope="module")
def read(text: str) -> Page:
    return Page(text)


def numbers(value: Any) -> Iterator[float]:
    """Every number of a report's JSON."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in IN_WORDS:
                yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield float(value)


def as_number(cell: str) -> float:
    return float(cell.replace("∞", "inf"))


def test_every_number_stands_in_a_table_to_three_digits(read: Page) -> None:
    tables = [t for panel in read.panels.values() for t in panel.tables.items()]
    said = " ".join(w for caption, rows in tables for w in (caption, *sum(rows, [])))
    said += " ".join(re.findall(r"[\w.]+", read.text[: read.text.index("Verdict")]))
    found = sorted({float(w) for w in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", said)})
    said_of_truncation = {float(REPORT.truncation or 0)}
    for v in numbers(json.loads(REPORT.to_json())):
        near = any(math.isclose(v, w, rel_tol=6e-3) for w in found) or v in said_of_truncation
        assert near, v


@pytest.mark.parametrize(
    ("number", "caption", "curves"),
    [
        (1, "log₁₀ ρ(k)", [g.log10_rho_by_lag for g in REPORT.lag_gradients]),
        (1, "log₁₀ ρ(k) of torch's own start", [g.log10_rho_by_lag for g in REPORT.torch_default]),
        (3, "Lyapunov exponents, nats a step",
         [j.lyapunov_nats_per_step for m in REPORT.modules for j in m.jacobians]),
        (5, "r²(k)", [c.r2_by_lag for c in REPORT.capacities]),
    ],
)  # fmt: skip
def test_each_column_is_its_layers_curve(
    read: Page, number: int, caption: str, curves: list[tuple[float, ...]]
) -> None:
    for label, curve in zip(LABELS, curves, strict=True):
        column = list(map(as_number, read.panels[number].column(caption, label)))
        assert column == pytest.approx(curve, rel=6e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("number", "curves"),
    [
        (1, [g.log10_rho_by_lag for g in REPORT.lag_gradients]),
        (3, [j.lyapunov_nats_per_step for m in REPORT.modules for j in m.jacobians]),
        (5, [c.r2_by_lag for c in REPORT.capacities]),
    ],
)
def test_each_chart_draws_the_very_numbers(
    read: Page, number: int, curves: list[tuple[float, ...]]
) -> None:
    drawn = [t["y"] for t in read.panels[number].charts[0]["data"] if t["mode"] != "markers"]
    wanted = [[v if math.isfinite(v) else None for v in curve] for curve in curves]
    assert drawn[-len(wanted) :] == wanted


def test_other_charts_draw_the_very_numbers(read: Page) -> None:
    heat = read.panels[2].charts[1]["data"][0]["z"]
    rows = REPORT.connectivity[1].norms
    assert heat == [[math.log10(v) if v else None for v in row] for row in rows]
    assert read.panels[6].curve("model") == list(REPORT.weight_lags[0].cosine_by_lag)
    assert read.panels[6].curve("model, size") == list(REPORT.weight_lags[0].share_by_lag)
    assert REPORT.clipping is not None and REPORT.evenness is not None
    assert read.panels[7].charts[0]["data"][0]["y"] == list(REPORT.clipping.norms)
    (gate,) = [t for t in read.panels[8].charts[0]["data"] if t["name"] == "f"]
    assert gate["x"] == [s.ratio for s in REPORT.evenness.shares if s.gate == "f"]


def test_no_bar_of_the_histogram_crosses_the_lag(read: Page) -> None:
    chart, mark = read.panels[4].charts[0], math.log10(REPORT.lag)
    for label, times in zip(LABELS, (g for m in REPORT.modules for g in m.gates), strict=True):
        (bars,) = [t for t in chart["data"] if _full(t["name"], label)]
        counted = dict(zip(bars["x"], bars["y"], strict=True))
        assert sum(counted.values()) == len(times.tau_steps)
        assert all(abs(x - mark) > bars["width"] / 2 for x in counted)
        above = sum(v for x, v in counted.items() if x > mark)
        assert above == sum(tau > REPORT.lag for tau in times.tau_steps)
        for tau in (t for t in times.tau_steps if 0.1 < t < math.inf):
            assert min(abs(math.log10(tau) - x) for x in counted) <= 0.05 + 1e-9


def test_words_of_an_upright_mark_stand_above_the_chart(read: Page) -> None:
    reach = read.panels[1].charts[0]["layout"]
    (words,) = [a for a in reach["annotations"] if a["text"] == "task lag 20"]
    assert (words["x"], words["y"], words["yref"], words["yanchor"]) == (20, 1, "paper", "bottom")
    assert words["xanchor"] == "right"  # towards the middle, so that it is not cut off
    assert words.get("textangle", 0) == 0 and reach["showlegend"] is False


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.012, 0.048, ["0.01", "0.02", "0.03", "0.04"]),
        (0.4, 60, ["0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        (3e-6, 2e-1, ["10<sup>-6</sup>", "10<sup>-5</sup>", "10<sup>-4</sup>", "0.001"]),
    ],
)
def test_an_axis_of_powers_has_few_ticks_and_enough(
    low: float, high: float, words: list[str]
) -> None:
    ticks, logs = list_powers(low, high), list_powers(low, high, logs=True)
    assert ticks["ticktext"][: len(words)] == words
    assert 3 <= sum(low <= v <= high for v in ticks["tickvals"]) <= 9
    assert logs["tickvals"] == pytest.approx([math.log10(v) for v in ticks["tickvals"]])


def test_weights_that_are_all_zero_are_named_and_have_no_row(read: Page) -> None:
    panel = read.panels[8]
    assert "weights that are all 0" in panel.text and "learn): head.b." in panel.text
    rows = panel.charts[0]["layout"]["yaxis"]["ticktext"]
    assert "head.w" in rows and "head.b" not in rows


def test_the_head_tells_sizes_and_the_start_of_a_cured_copy(read: Page) -> None:
    assert "Own(a=1), 2 layers of 12 units;" in read.text and "started by" not in read.text
    assert "1 layer of 12 units, both directions" in read.text
    made = throughtime.cure(nn.LSTM(3, 6), lag=9)
    cured = made.model
    report = throughtime.diagnose(cured, torch.randn(20, 4, 3), lag=9)
    (module,) = report.modules
    assert (module.hidden_sizes, module.start) == (
        (6,),
        made.started[0].words.removeprefix("LSTM: "),
    )
    found = Page(write_page(report)).text
    assert "How far back cured LSTM learns" in found
    assert "1 layer of 6 units; started by throughtime.cure with time scales of 2 to" in found
    assert report.modules[0].start in str(report).splitlines()[1]


def test_the_head_tells_when_by_what_and_of_how_many_parameters() -> None:
    model = nn.GRU(3, 30)
    report = throughtime.diagnose(model, torch.randn(20, 4, 3))
    assert report.parameters == sum(p.numel() for p in model.parameters()) == 3150
    found = Page(write_page(report)).text
    assert "Parameters3,150" in found
    assert f"throughtime{throughtime.__version__}" in found
    made = re.search(r"Measured(\d{4}-\d\d-\d\d \d\d:\d\d) UTC", found)
    assert made is not None
    then = datetime.strptime(made[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - then).total_seconds()) < 3600


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0612345, "0.0612"), (61.2345, "61.2"), (1234.5, "1230"), (123456.0, "123000"),
        (1.23456e9, "1.23e+09"), (1.23456e-7, "1.23e-07"), (-3.0, "-3"), (0.0, "0"), (7, "7"),
        (math.inf, "∞"), (None, "none"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: Any, words: str) -> None:
    assert show(value) == words


LONG = "encoder.backbone.layers.0.recurrent_block.rnn"


def test_names_are_whole_in_legends_and_labels() -> None:
    """However long; in a label they are broken into lines."""
    told = Report.from_json(REPORT.to_json().replace(json.dumps(NAME)[1:-1], LONG))
    text = write_page(told)
    read = Page(text)
    names = {}
    for number, part in enumerate(text.split('<section class="panel"')):
        legends = re.findall(r'<ul class="legend">(.*?)</ul>', part)
        names[number] = {re.sub(r"<.*?>", "", li) for ul in legends for li in ul.split("</li>")}
    assert all({f"{LONG}.0", f"{LONG}.0 backward"} <= names[n] for n in (1, 3, 4, 5))
    assert f"{LONG} backward, size" in names[6]
    labels = read.panels[3].charts[1]["layout"]["yaxis"]["ticktext"]
    assert [label.replace("<br>", "") for label in labels[2:]] == [
        f"{LONG}.0", f"{LONG}.0 backward",
    ]  # fmt: skip
    assert all(len(line) <= 22 for label in labels for line in label.split("<br>"))
    assert LONG in read.panels[2].text and "…" not in text.replace(read_library(), "")


def test_axes_end_where_the_data_ends(read: Page) -> None:
    def drawn(chart: dict[str, Any]) -> list[float]:
        return [x for t in chart["data"] for x, y in zip(t["x"], t["y"], strict=True)
                if x is not None and y is not None]  # fmt: skip

    for number, at in ((1, 0), (3, 0), (6, 0)):
        chart = read.panels[number].charts[at]
        values = drawn(chart) + marks(chart, "x")
        assert chart["layout"]["xaxis"]["range"] == [min(values), max(values)], number
    capacity = read.panels[5].charts[0]["layout"]["xaxis"]["range"]
    held = [k for c in REPORT.capacities for k, r2 in enumerate(c.r2_by_lag) if r2]
    assert capacity == [0, max(held) + 1]
    low, high = read.panels[4].charts[0]["layout"]["xaxis"]["range"]
    times = [t for m in REPORT.modules for g in m.gates for t in g.tau_steps if 0 < t < math.inf]
    assert low == pytest.approx(math.log10(min(times)), abs=0.11) and 10**high < 4 * max(times)
    for number in (2, 8):
        for chart in read.panels[number].charts:
            assert number == 2 or len(chart["layout"]["xaxis"]["range"]) == 2


def test_a_chart_of_nothing_is_a_sentence() -> None:
    (module, *_), e = REPORT.modules, REPORT.evenness
    assert e is not None
    still = tuple(replace(s, share_low=0.0, share_high=0.0) for s in module.gates[0].saturation)
    gates = replace(module.gates[0], saturation=still)
    lost = replace(module.jacobians[0], lyapunov_nats_per_step=(-math.inf,) * 4)
    zeros = tuple(replace(d, norms=(0.0,) * 3) for d in e.depth)
    report = replace(
        REPORT,
        modules=(replace(module, gates=(gates,), jacobians=(lost,)),),
        connectivity=(replace(REPORT.connectivity[0], norms=((0.0,) * 30,) * 2),),
        evenness=replace(e, depth=zeros, shares=tuple(replace(s, ratio=0.0) for s in e.shares)),
    )
    read = Page(write_page(report))
    said = {
        2: "Nothing to draw of inputs that outputs of model depend on.",
        3: "Nothing to draw of Lyapunov exponents, largest first.",
        4: "Nothing to draw of share of values at either end of each gate.",
        8: "Nothing to draw of gradient that reaches each layer.",
    }
    for number, sentence in said.items():
        assert sentence in read.panels[number].text
    assert [len(read.panels[n].charts) for n in said] == [0, 1, 1, 0]


def test_every_unit_has_a_line(read: Page) -> None:
    words = {1: "nats a step", 2: "C(t, t′)", 3: "condition number", 4: "τ", 5: "r²(k)",
             6: "cosine", 7: "noise scale", 8: "‖dL/ds‖"}  # fmt: skip
    for number, word in words.items():
        assert f"{word} " in read.panels[number].text
    assert "slope of ln ρ: -0.1 means 10 % less" in read.panels[1].text
    assert "‖Δθ‖ / ‖θ‖" in read.panels[8].text and "‖g‖ / ‖θ‖" not in read.panels[8].text
    assert math.exp(-0.1) == pytest.approx(0.9, abs=0.01)
    assert math.exp(-0.7) == pytest.approx(0.5, abs=0.01)


def test_a_caution_stands_in_the_verdict() -> None:
    caution = Trouble("remembers little", "", "Little is remembered.", "Ask the task.")
    healthy = replace(REPORT, troubles=())
    for report, kind, words in (
        (replace(healthy, cautions=(caution,)), "warn", "Little is remembered."),
        (replace(REPORT, cautions=(caution,)), "alarm", "Little is remembered."),
        (healthy, "calm", "No trouble found."),
    ):
        text = write_page(report)
        assert f'<section id="verdict" class="{kind}">' in text and words in Page(text).text
    at_lag = max(c.r2_by_lag[20] for c in healthy.capacities)
    assert f"There r² is {show(at_lag)} at the lag" in Page(write_page(healthy)).text


def test_ragged_rows_and_what_is_not_seen_are_told() -> None:
    g = replace(REPORT.lag_gradients[0], rows_by_lag=(7, *[5] * 28, 2))
    blind = Unseen(NAME, 0, 1, True, 1, 30)
    report = replace(
        REPORT, lengths=(30, 12, 30, 9, 3, 3, 3, 3), lag_gradients=(g,), unseen=(blind,)
    )
    read = Page(write_page(report))
    assert "Steps T3 to 30" in read.text
    assert "7 of 8 rows at lag 0 and 2 at lag 29." in read.panels[1].text
    assert "no curve, for the loss reads it after 1 of its 30 steps" in read.panels[1].text
    assert "Rows of several lengths all end at step 29." in read.panels[2].text


def _full(drawn: str, label: str) -> bool:
    """Whether a name in a chart, escaped, is this label."""
    name = drawn.replace("&lt;", "<").replace("&gt;", ">").replace("&#x27;", "'")
    return label == name.replace("&amp;", "&")


def marks(chart: dict[str, Any], axis: str) -> list[float]:
    """Where a chart's straight lines stand."""
    return [s[f"{axis}0"] for s in chart["layout"]["shapes"] if s[f"{axis}0"] == s[f"{axis}1"]]


def test_charts_carry_their_marks(read: Page) -> None:
    reach, spectrum, gates = (read.panels[n].charts[0] for n in (1, 3, 4))
    floor = math.log10(torch.finfo(torch.float32).tiny)
    assert marks(reach, "y") == pytest.approx([math.log10(1 / math.e), -3, floor])
    assert marks(reach, "x") == [REPORT.lag]
    assert marks(spectrum, "y") == [0]
    assert marks(gates, "x") == [math.log10(REPORT.lag)]
    assert marks(read.panels[6].charts[0], "y") == [0.99]
    assert marks(read.panels[7].charts[0], "y") == [0.75]
    assert marks(read.panels[8].charts[0], "x") == [1e-3]


def test_it_loads_nothing_and_has_the_library_once(text: str, read: Page) -> None:
    assert read.loads == []
    assert "default-src 'none'" in text and "url(" not in text.replace(read_library(), "")
    assert text.count(read_library()) == 1 and len(read.scripts) == 2


def test_a_report_of_two_wide_layers_is_small() -> None:
    large = write_page(sample(steps=200, units=256))
    assert len(large.encode()) - len(read_library().encode()) <= 3e6


def test_names_are_escaped_and_stay_readable(text: str, read: Page) -> None:
    ours = text.replace(read_library(), "")
    assert "alert('" not in ours and ours.count("<script>") == len(read.scripts)
    assert f"{NAME}.0" in read.panels[1].tables["log₁₀ ρ(k)"][0]
    assert f"Exploding in {NAME}: 102.5." in read.text
    assert "it has direct inputs <dt>." in read.panels[5].text


def test_a_missing_quantity_is_a_sentence_and_no_empty_chart() -> None:
    read = Page(write_page(bare()))
    assert sorted(read.panels) == list(range(1, 9))
    for number, panel in read.panels.items():
        assert panel.charts == [] and panel.tables == {}
        why = "the loss is NaN from the start." if number == 1 else "This report does not hold it."
        assert (why if number != 3 else "more than 10 steps") in panel.text
    assert "not finite" in read.text and "No trouble found." in read.text


def test_what_diagnose_measures_is_what_the_page_shows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = throughtime.diagnose(nn.LSTM(3, 6), torch.randn(20, 4, 3), lag=15)
    report.save(tmp_path / "report.html")
    read = Page((tmp_path / "report.html").read_text("utf-8"))
    column = read.panels[1].column("log₁₀ ρ(k)", "model.0")
    (gradient,) = report.lag_gradients
    assert list(map(as_number, column)) == pytest.approx(gradient.log10_rho_by_lag, rel=6e-3)
    assert report.troubles and all(t.sentence in read.text for t in report.troubles)


def test_json_is_saved_whole_and_other_endings_are_refused(tmp_path: Path) -> None:
    REPORT.save(str(tmp_path / "report.json"))
    assert Report.from_json((tmp_path / "report.json").read_text("utf-8")) == REPORT
    with pytest.raises(OptionError, match=r"saved as \.html or \.json, got 'report.pdf'"):
        REPORT.save(tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()


def test_without_plotly_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(
            ("throughtime.diagnosis.report.page", "throughtime.diagnosis.report.chart")
        ):
            monkeypatch.delitem(sys.modules, name)
        elif name.partition(".")[0] == "plotly":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingExtra, match=r"plotly, which the extra train brings, .* pip install "
    ):
        REPORT.save(tmp_path / "report.html")
    REPORT.save(tmp_path / "report.json")


@pytest.mark.parametrize("name", ["before", "after"])
def test_the_pictures_of_the_docs_are_there_and_small(name: str) -> None:
    picture = ROOT / "docs" / "pictures" / f"report_{name}.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size <= 150e3
    assert f"pictures/{picture.name}" in (ROOT / "docs" / "diagnose.md").read_text("utf-8")


def test_one_file_knows_plotly() -> None:
    users = {m.path for m in modules() for _, name in imports(m) if name.startswith("plotly")}
    assert users == {"diagnosis/report/chart.py"}
