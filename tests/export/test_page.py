"""docs/export.md: its firmware, plug-in and browser code is built and run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from tests.export.built import STRICT, need, run
from tests.house.source import ROOT
from throughtime import LSTM, Readout
from throughtime.export import to_c, to_object
from throughtime.export.pieces import prepare

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (code,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20, f"{kind}: {len(lines)} lines"
    return str(code)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(LSTM(1, 8), Readout(8, 1))


def answers(model: nn.Module, values: list[float]) -> list[float]:
    """Of the model itself, to a sequence."""
    import torch

    y = model(torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1))[0]
    return [round(v, 5) for v in y.flatten().tolist()]


def numbers(said: str) -> list[float]:
    return [round(float(word), 5) for word in said.split()]


def test_firmware(model: nn.Module, tmp_path: Path) -> None:
    to_c(model, tmp_path)
    (tmp_path / "firmware.c").write_text(block("c"))
    (tmp_path / "board.c").write_text(_BOARD)
    sources = ["firmware.c", "board.c", "net.c"]
    run([need("gcc", "gcc"), *STRICT, "-O1", *sources, "-lm", "-o", "board"], tmp_path)
    about, *said = run(["./board"], tmp_path).splitlines()
    assert about.startswith("net: ")
    assert numbers(" ".join(said)) == pytest.approx(answers(model, [0.5, -1, 2]), abs=2e-5)


_BOARD = """#include <stdio.h>
float sensor_read(void);
void motor_write(float strength);
void timer_interrupt(void);
void start(void);
static const float values[3] = {0.5f, -1.0f, 2.0f};
static int at;
float sensor_read(void) { return values[at++]; }
void motor_write(float strength) { printf("%.6f\\n", (double)strength); }
int main(void)
{
    start();
    timer_interrupt();
    timer_interrupt();
    timer_interrupt();
    return 0;
}
"""


def test_plug_in(model: nn.Module, tmp_path: Path) -> None:
    to_c(model, tmp_path)
    (tmp_path / "effect.cpp").write_text(block("cpp") + _HOST)
    run([need("gcc", "gcc"), "-O1", "-c", "net.c"], tmp_path)
    run([need("g++", "g++"), "-Wall", "-Wextra", "-Werror", "effect.cpp", "net.o", "-lm", "-o",
         "host"], tmp_path)  # fmt: skip
    said = numbers(run(["./host"], tmp_path))
    wanted = answers(model, [0.5, -1, 2])
    assert said == pytest.approx([*wanted, *answers(model, [1, 1, 1])], abs=2e-5)


_HOST = """
#include <cstdio>
int main()
{
    float left[] = {0.5f, -1.0f, 2.0f}, right[] = {1.0f, 1.0f, 1.0f};
    float *channels[] = {left, right};
    Effect effect(2);
    effect.process(channels, 3);
    for (float *channel : channels)
        for (int t = 0; t < 3; ++t) std::printf("%.6f\\n", channel[t]);
}
"""


def test_browser(model: nn.Module, tmp_path: Path) -> None:
    to_object(model, tmp_path, target="wasm32")
    code = block("js").replace(
        'new URL("./net.wasm", import.meta.url)',
        'await (await import("node:fs/promises")).readFile(new URL("./net.wasm", import.meta.url))',
    )  # node fetches no files; all else is as it stands
    (tmp_path / "mine.mjs").write_text(code)
    (tmp_path / "use.mjs").write_text(
        'import { process, restart } from "./mine.mjs";\nprocess(Float32Array.of(3));\nrestart();\n'
        "for (const y of process(Float32Array.of(0.5, -1, 2))) console.log(y.toFixed(6));\n"
    )
    about, *said = run([need("node", "nodejs"), tmp_path / "use.mjs"]).splitlines()
    assert about.startswith("net: ")
    assert numbers(" ".join(said)) == pytest.approx(answers(model, [0.5, -1, 2]), abs=2e-5)


def test_the_record_is_the_models_own(model: nn.Module) -> None:
    x, y, *_ = prepare(model, "net", "float32").record
    wanted = answers(model, x[:, 0].tolist())
    assert [round(v, 5) for v in y[:, 0].tolist()] == pytest.approx(wanted, abs=2e-5)
