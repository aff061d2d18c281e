"""Measures calls on a machine whose cores others want too.

    python -m benchmarks.busy.run [--burners 0 1 2] [--seconds 1.0] [--out FILE]

Each case is measured beside so many programs that each burn a core, in turns with torch.nn and in
inference with onnxruntime, values compared first as in `benchmarks.speed`. A ratio is the other's
time over ours, of medians; the bars are those of one burner: torch.nn none below 1, onnxruntime
mean 0.9 and none below 0.5.

Last, four times as many threads are asked for as there are cores, against as many as cores: the
same calls in turns, which must take at most 1.2 times as long.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import throughtime
from benchmarks.speed.machine import describe_machine, describe_source, describe_versions
from benchmarks.speed.measure import Effort, interleave
from benchmarks.speed.peers.ours import usual_backend
from benchmarks.speed.row import Row, measure_case
from benchmarks.speed.spread import geometric_mean
from benchmarks.speed.store import Store
from benchmarks.speed.works import BUILT_IN, Case, cases

SHAPES = ["1x50x32", "16x50x32", "7x50x100", "1x50x128", "16x50x128", "64x50x128"]
RIVALS = {"inference": ("torch.nn", "onnxruntime"), "training": ("torch.nn",)}


class Bar(NamedTuple):
    """What ratios beside one burner must reach: their geometric mean, and the lowest."""

    mean: float
    lowest: float


BARS = {"torch.nn": Bar(1.0, 1.0), "onnxruntime": Bar(0.9, 0.5)}
ASKED = 1.2  # how many times as long calls may take with four times as many threads as cores


@contextmanager
def burning(count: int) -> Iterator[None]:
    """Inside, so many programs each burn a core."""
    command = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for one in burners:
            one.kill()
            one.wait()


def works() -> list[Case]:
    """The cases, each beside its rivals."""
    found = cases(list(RIVALS), list(BUILT_IN), True, SHAPES)
    return [replace(c, work=replace(c.work, beside=RIVALS[c.work.name])) for c in found]


def line(row: Row, burners: int) -> str:
    """A row as it is printed."""
    times = "  ".join(
        f"{name} {1e3 * found['wall_s']['median']:8.3f} ms ({row['ratios'][name]['ratio']:.2f})"
        if name in row["ratios"]
        else f"{name} {1e3 * found['wall_s']['median']:8.3f} ms"
        for name, found in row["times"].items()
    )
    return f"{burners} burners  {row['key']:32} {times}"


def verdicts(rows: list[Row]) -> Iterator[str]:
    """The bars beside one burner."""
    for name, bar in BARS.items():
        found = {r["key"]: r["ratios"][name]["ratio"] for r in rows if name in r["ratios"]}
        if not found:
            continue
        mean, worst = geometric_mean(list(found.values())), min(found, key=lambda key: found[key])
        met = mean >= bar.mean and found[worst] >= bar.lowest
        yield (
            f"one burner, {name}: mean {mean:.2f} ({bar.mean}), lowest {found[worst]:.2f} "
            f"({bar.lowest}, {worst}): {'met' if met else 'MISSED'}"
        )


def more_threads_than_cores(effort: Effort) -> str:
    """The largest ratio over some calls, of many threads to as many as cores."""
    cores, worst = torch.get_num_threads(), 0.0
    for B, H in ((16, 32), (7, 100), (16, 128), (1, 512)):
        layer, x = throughtime.LSTM(H, H), torch.randn(50, B, H)

        def call(threads: int, layer: torch.nn.Module = layer, x: torch.Tensor = x) -> None:
            torch.set_num_threads(threads)
            with torch.no_grad():
                layer(x)

        runs = {"cores": lambda call=call: call(cores), "more": lambda call=call: call(4 * cores)}
        found = {name: sorted(t.wall) for name, t in interleave(runs, effort).items()}
        medians = {name: wall[len(wall) // 2] for name, wall in found.items()}
        worst = max(worst, medians["more"] / medians["cores"])
    torch.set_num_threads(cores)
    met = "met" if worst <= ASKED else "MISSED"
    return (
        f"{4 * cores} threads on {cores} cores: at most {worst:.2f} times as long ({ASKED}: {met})"
    )


def main() -> None:
    """Measure, and print as it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--burners", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "run.json")
    options = parser.parse_args()
    effort, backend = Effort(seconds=options.seconds), usual_backend()
    about = {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "source": describe_source(),
    }
    store = Store(options.out, about)
    for count in options.burners:
        with burning(count):
            for case in works():
                row = measure_case(case, effort, backend) | {"burners": count}
                store.add(row)
                print(line(row, count), flush=True)
    for verdict in verdicts([row for row in store.rows if row["burners"] == 1]):
        print(verdict)
    print(more_threads_than_cores(effort))


if __name__ == "__main__":
    main()
