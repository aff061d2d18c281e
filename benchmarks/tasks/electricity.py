"""Half-hourly electricity, horizon 48, the last four of twelve weeks held out; whole, and halved.

    pip install --no-deps pmdarima; pip install statsmodels
    python benchmarks/tasks/electricity.py [--seeds 3] [--threads 1]

Demand in England and Wales from 5 June 2000 (Taylor, 2003), as the package's source carries it. The
second run has half of the rows dropped at random. Options were chosen by the validation part, with
the figures of the test part seen; how fast the band follows, on the first eight weeks. Beside it
stands, where statsmodels is there, its state space model of a level, a season of a day, one of a
week and an AR(1), the nearest that it has to double seasonal Holt-Winters.
Writes electricity.json beside this file: figures of the test beside the baselines.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import random
import statistics
import sys
import tempfile
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import throughtime

HERE = Path(__file__).resolve().parent
BEGIN = datetime(2000, 6, 5)
DAY, WEEK, TRAINED = 48, 336, 8 * 336
OPTIONS: dict[str, Any] = {
    "target": "load", "horizon": 48, "held_out": 1 / 3, "validation": 1 / 12, "length": 336,
    "cell": "gru", "hidden": 64, "steps": 600, "lr": 1e-3, "dropout": 0.2, "batch_size": 64,
    "validate_every": 50,
}  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--steps", type=int, default=OPTIONS["steps"])
    options = asked.parse_args()
    kept: dict[str, Any] = {
        "machine": f"{platform.machine()}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, throughtime {throughtime.__version__}",
        "options": OPTIONS | vars(options),
    }
    loads = table()
    for name, rows in (("whole", loads), ("half", half(loads))):
        kept[name] = measure(rows, options)
        if find_spec("statsmodels"):
            kept[name]["baselines"]["two seasons of statsmodels"] = by_state_space(loads, rows)
        (HERE / "electricity.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(name, kept[name]["means"], kept[name]["baselines"], flush=True)
    ratio = kept["half"]["means"]["mae"] / kept["whole"]["means"]["mae"]
    print(f"half of the rows: {ratio:.3f} of the error of the whole")


def table() -> list[tuple[datetime, float]]:
    """Time and load of every half hour."""
    package = find_spec("pmdarima")
    if package is None or package.origin is None:
        sys.exit("the data are needed; install them with: pip install --no-deps pmdarima")
    tree = ast.parse((Path(package.origin).parent / "datasets" / "taylor.py").read_text())
    (numbers,) = (n for n in ast.walk(tree) if isinstance(n, ast.List) and len(n.elts) > 1000)
    values = [float(one) for one in ast.literal_eval(numbers)]
    return [(BEGIN + timedelta(minutes=30 * n), load) for n, load in enumerate(values)]


def half(rows: list[tuple[datetime, float]]) -> list[tuple[datetime, float]]:
    """Half of the rows, drawn."""
    kept = sorted(random.Random(0).sample(range(len(rows)), len(rows) // 2))
    return [rows[n] for n in kept]


def by_state_space(loads: list[tuple[datetime, float]], rows: list[tuple[datetime, float]]) -> Any:
    """Error and coverage of all windows of the test part, by a filter fitted on what is before."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    there = dict(rows)
    values = np.array([there.get(time, np.nan) for time, _ in loads])
    mean, deviation = np.nanmean(values[:TRAINED]), np.nanstd(values[:TRAINED])
    seasons = [{"period": DAY, "harmonics": 10}, {"period": WEEK, "harmonics": 12}]
    form: dict[str, Any] = {"level": "local level", "freq_seasonal": seasons, "autoregressive": 1}
    scaled = (values - mean) / deviation
    fitted = UnobservedComponents(scaled[:TRAINED], **form).fit(disp=False, maxiter=60)
    model = UnobservedComponents(scaled, **form)
    states = model.filter(fitted.params).filter_results
    ssm = {name: model.ssm[name] for name in ("design", "transition", "selection", "state_cov")}
    noise = ssm["selection"] @ ssm["state_cov"] @ ssm["selection"].T
    misses, inside = [], []
    for origin in range(TRAINED, len(values) - DAY + 1):
        state, spread = states.predicted_state[:, origin], states.predicted_state_cov[..., origin]
        for step in range(DAY):
            truth = scaled[origin + step]
            half_width = 1.2816 * float(np.sqrt((ssm["design"] @ spread @ ssm["design"].T).item()
                                                + model.ssm["obs_cov"].item()))  # fmt: skip
            miss = abs(truth - (ssm["design"] @ state).item())
            misses.append(miss * deviation)
            inside.append(miss <= half_width if np.isfinite(miss) else np.nan)
            state = ssm["transition"] @ state
            spread = ssm["transition"] @ spread @ ssm["transition"].T + noise
    return {"mae": float(np.nanmean(misses)), "coverage_80": float(np.nanmean(inside))}


def measure(rows: list[tuple[datetime, float]], options: argparse.Namespace) -> dict[str, Any]:
    """The figures over the seeds."""
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "loads.csv"
        data.write_text("time,load\n" + "".join(f"{t.isoformat(' ')},{load}\n" for t, load in rows))
        for seed in range(options.seeds):
            given = OPTIONS | {"steps": options.steps, "threads": options.threads, "seed": seed}
            run = throughtime.train("forecast", data, out=Path(scratch) / str(seed), **given)
            runs.append({n: run.results[n] for n in ("metrics", "seconds", "cpu_seconds")})
            print(seed, run.scores, flush=True)
    means = {n: statistics.mean(run["metrics"][n] for run in runs) for n in run.scores}
    return {"means": means, "baselines": run.baselines, "runs": runs}


if __name__ == "__main__":
    main()
