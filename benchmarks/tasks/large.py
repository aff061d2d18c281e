"""Five million rows of CSV to the first training step of a forecast: seconds, and peak memory.

    python benchmarks/tasks/large.py [--rows 5000000] [--series 500] [--folder DIR]

The file has a time by the hour, the name of a site, what it used, its temperature and a word. A
process of its own reads it, finds what it says, looks for leaks, makes the windows and takes one
step; its clock begins before its imports, and "processor" is the time of all cores. Writes
large.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SECONDS, BYTES = 30, 1.5e9  # that it should keep within
STEP = """
import json, resource, sys, time
begin = time.perf_counter()
from throughtime.tasks import find
from throughtime.train.run import resolve
from throughtime.train.learner import Learner
from throughtime.train.learner import begin_model
kind = find("forecast")
task = kind(resolve(kind, {"data": sys.argv[1], "target": "load", "steps": 1, "threads": 2}))
read = time.perf_counter()
shown = task.describe_data()
made = time.perf_counter()
Learner(task, begin_model(task)).step()
seconds = {"facts": read - begin, "windows": made - read, "all": time.perf_counter() - begin}
seconds["processor"] = time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "read": shown}))
"""


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--rows", type=int, default=5_000_000)
    asked.add_argument("--series", type=int, default=500)
    asked.add_argument("--folder", default="")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder or None) as scratch:
        file = Path(scratch) / "sites.csv"
        write(file, options.rows // options.series, options.series)
        ran = subprocess.run(
            [sys.executable, "-c", STEP, str(file)], capture_output=True, text=True, check=False
        )
        size = file.stat().st_size
    if ran.returncode:
        sys.exit(ran.stderr)
    said = ran.stdout.splitlines()[-1].replace(f"{scratch}/", "")
    found: dict[str, Any] = json.loads(said)
    found |= {"rows": options.rows, "series": options.series, "file_bytes": size}
    found["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    (HERE / "large.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(found["seconds"], f"peak {found['peak_bytes'] / 1e9:.2f} GB, file {size / 1e6:.0f} MB")
    print(
        "kept" if found["seconds"]["all"] <= SECONDS and found["peak_bytes"] <= BYTES else "missed"
    )


def write(file: Path, steps: int, series: int) -> None:
    """Some series by the hour, one below the other."""
    generator = np.random.default_rng(0)
    hours = np.arange(steps)
    times = np.datetime_as_string(np.datetime64("2020-01-01T00:00:00") + hours.astype("m8[h]"))
    times = [time.replace("T", " ") for time in times.tolist()]
    day, week = 2 * np.pi * hours / 24, np.where(hours // 24 % 7 >= 5, 0.7, 1.0)
    with open(file, "w", encoding="utf-8") as out:
        out.write("time,site,load,temperature,state\n")
        for number in range(series):
            warm = 12 + 8 * np.sin(day - 2) + np.cumsum(0.2 * generator.standard_normal(steps))
            load = week * (50 + 20 * np.sin(day)) + generator.standard_normal(steps) - 0.3 * warm
            state = np.where(load > 50, "high", "low").tolist()
            rows = zip(times, load.tolist(), warm.tolist(), state, strict=True)
            out.writelines(f"{t},site {number},{x:.3f},{w:.1f},{s}\n" for t, x, w, s in rows)


if __name__ == "__main__":
    main()
