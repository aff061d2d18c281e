"""Writes docs/pictures/: pages opened in Chromium and photographed, and a forecast.

    python docs/make_pictures.py [reports] [forecast] [classify] [tag] [translate] [language]
        [pronounce]

reports: before and after a cure; an untrained torch.nn.LSTM of 32 units is to tell at step 100 a
sign shown at step 1. Of each task: the page of a short run on the data in the package. Without
words, all of them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import throughtime
from throughtime.cli import main as command

PICTURES = Path(__file__).with_name("pictures")
T, B, UNITS, BATCHES = 100, 32, 32, 8
STEPS = {"forecast": 600, "classify": 300, "tag": 300, "translate": 300, "language": 300,
         "pronounce": 1500}  # fmt: skip
SIZE = "1180,826"
"""What is photographed of each page, from its top, pixels."""


class Latch(nn.Module):
    """The sign, from the last output."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(1, UNITS)
        self.head = nn.Linear(UNITS, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.memory(x)[0][-1])
        return logits


def batch() -> tuple[Tensor, Tensor]:
    """(T, B, 1) and (B,): a sign, then noise of deviation 0.2."""
    bits = torch.randint(2, (B,))
    x = 0.2 * torch.randn(T, B, 1)
    x[0, :, 0] = 2.0 * bits - 1
    return x, bits


def main() -> None:
    """The pictures that were asked for."""
    wanted = sys.argv[1:] or ["reports", *STEPS]
    PICTURES.mkdir(exist_ok=True)
    if "reports" in wanted:
        draw_reports()
    for task in STEPS:
        if task in wanted:
            draw_page(task)


def draw_page(task: str) -> None:
    """The top of the page of a task's run; of a forecast its first series too."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / f"{task}-1"
        words = f"train {task} --steps {STEPS[task]} --threads 1 --plots png --out {run}"
        command(words.split())
        picture(run / "report.html", PICTURES / f"page_{task}.png")
        few_colours(PICTURES / f"page_{task}.png")
        if task == "forecast":
            (drawn,) = (run / "plots").glob("*-what-came-town.png")
            (PICTURES / "forecast.png").write_bytes(drawn.read_bytes())
            few_colours(PICTURES / "forecast.png")


def few_colours(file: Path) -> None:
    """A picture in 64 colours, which is a third of its bytes."""
    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)


def draw_reports() -> None:
    """Two reports, two pages, two pictures."""
    torch.manual_seed(0)
    model, batches = Latch(), [batch() for _ in range(BATCHES)]
    before = throughtime.diagnose(model, batches, cross_entropy)
    after = throughtime.diagnose(throughtime.cure(model, before).model, batches, cross_entropy)
    print(before, after, before.compare(after), sep="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        for name, report in (("before", before), ("after", after)):
            page = Path(folder) / f"{name}.html"
            report.save(page)
            picture(page, PICTURES / f"report_{name}.png")


def picture(page: Path, file: Path) -> None:
    """What Chromium shows of a page, on light ground."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--virtual-time-budget=20000", "--blink-settings=preferredColorScheme=1",
        f"--window-size={SIZE}", f"--screenshot={file}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
    print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
