"""The page in a real Chromium: charts drawn, no fault, nothing fetched, numbers as in the JSON."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.diagnosis.page.reading import Page
from tests.diagnosis.page.sample import NAME, sample
from throughtime.diagnosis.report.chart import PAGE, SERIES
from throughtime.diagnosis.report.page import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium to open the page in; install the package: apt-get install chromium",
)
REPORT = sample()
LIGHT, DARK = 1, 0
"""As Chromium numbers what a reader prefers."""

PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const charts = [...document.querySelectorAll(".chart")].map((box) => ({
    panel: box.closest("section").id,
    data: box.lastChild.data.map(({ name, x, y, z }) => ({ name, x, y, z })),
    drawn: box.querySelectorAll(".scatterlayer .trace, .barlayer .trace, .heatmaplayer .hm").length,
    width: box.querySelector(".main-svg").getBoundingClientRect().width,
    within: box.clientWidth,
    line: getComputedStyle(box.querySelector(".main-svg .js-line, .main-svg .point path")
      ?? box).stroke,
  }));
  const found = {
    charts,
    fault: document.getElementById("fault").textContent,
    fetched: performance.getEntriesByType("resource").length,
    columns: getComputedStyle(document.querySelector(".panels")).gridTemplateColumns
      .split(" ").length,
    ground: getComputedStyle(document.body).backgroundColor,
    page: [document.documentElement.scrollWidth, innerWidth],
  };
  parent.postMessage(JSON.stringify(found), "*");
}, 3000));
</script>"""
FRAME = """<!doctype html><body><iframe src="page.html" width="{width}" height="4000"></iframe>
<pre id="found"></pre><script>
addEventListener("message", ({{ data }}) => {{
  document.getElementById("found").textContent = data;
}});
</script>"""


def dumped(folder: Path, file: str, ground: int) -> str:
    """The document Chromium has made of a file after some seconds of its own clock."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--blink-settings=preferredColorScheme={ground}",
        "--window-size=1300,900", (folder / file).as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the page says of itself in a frame so wide, on a ground."""

    @cache
    def look(width: int, ground: int, more: str = "") -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("page")
        (folder / "page.html").write_text(write_page(REPORT) + more + PROBE, "utf-8")
        (folder / "frame.html").write_text(FRAME.format(width=width), "utf-8")
        text = dumped(folder, "frame.html", ground)
        match = re.search(r'<pre id="found">(.+?)</pre>', text, re.S)
        assert match, text
        found: dict[str, Any] = json.loads(unescape(match[1]))
        return found

    return look


@pytest.mark.parametrize("ground", [LIGHT, DARK])
def test_every_panel_is_drawn_without_a_fault_and_nothing_is_fetched(
    seen: Any, ground: int
) -> None:
    found = seen(1200, ground)
    assert found["fault"] == "" and found["fetched"] == 0
    assert {c["panel"] for c in found["charts"]} == {f"panel-{n}" for n in range(1, 9)}
    for chart in found["charts"]:
        assert chart["drawn"] == sum(bool(t["x"]) for t in chart["data"]) > 0
    dark = int(ground == DARK)
    assert found["ground"] == rgb(PAGE["paper"][dark])
    curve = next(c for c in found["charts"] if c["panel"] == "panel-5")
    assert curve["line"] == rgb(SERIES[0][dark])


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_what_is_drawn_equals_the_json(seen: Any) -> None:
    told = json.loads(REPORT.to_json())
    charts = seen(1200, LIGHT)["charts"]
    curves = {n: [c["data"] for c in charts if c["panel"] == f"panel-{n}"] for n in range(1, 9)}
    rho = [t["y"] for t in curves[1][0] if len(t.get("y", ())) == REPORT.steps]
    wanted = [g["log10_rho_by_lag"] for g in told["torch_default"] + told["lag_gradients"]]
    assert rho == [[None if v == "-inf" else v for v in curve] for curve in wanted]
    assert [t["y"] for t in curves[5][0]] == [c["r2_by_lag"] for c in told["capacities"]]
    assert curves[6][0][0]["y"] == told["weight_lags"][0]["cosine_by_lag"]
    assert curves[7][0][0]["y"] == told["clipping"]["norms"]
    heat = curves[2][1][0]["z"]
    for drawn, norms in zip(heat, told["connectivity"][1]["norms"], strict=True):
        assert drawn == [math.log10(v) if v else None for v in norms]


def test_a_phone_has_one_column_and_no_sideways_scroll(seen: Any) -> None:
    phone, desk = seen(390, LIGHT), seen(1200, LIGHT)
    assert (phone["columns"], desk["columns"]) == (1, 2)
    for found in (phone, desk):
        assert found["page"][0] <= found["page"][1]
        assert all(0 < c["width"] <= c["within"] for c in found["charts"])
    assert max(c["width"] for c in phone["charts"]) < 390


def test_a_script_error_is_told_on_the_page(seen: Any) -> None:
    """So that its absence above means something."""
    found = seen(1200, LIGHT, "<script>null.drawn</script>")
    assert "could not be drawn" in found["fault"] and "drawn" in found["fault"]


def test_tables_and_names_reach_the_reader(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(write_page(REPORT), "utf-8")
    read = Page(dumped(tmp_path, "page.html", LIGHT))
    assert not any(NAME in script for script in read.scripts)
    column = read.panels[5].column("r²(k)", f"{NAME}.0 backward")
    told = json.loads(REPORT.to_json())["capacities"][3]["r2_by_lag"]
    assert [float(v) for v in column] == pytest.approx(told, rel=6e-3)
