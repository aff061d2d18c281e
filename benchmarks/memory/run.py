"""Measures how far back cells learn from different starts: bars 1, 2, 3 and 5.

    python -m benchmarks.memory.run --bar 2

Rows of a bar share data, seed, steps, batch size, learning rate and clipping; only the start
differs. Traps against which each bar is fair, published with it:

- torch's default also gets learning rates 5e-4, 1e-3, 2e-3 and 5e-3;
- the time scale is told to ours, so ours also gets it 0.1, 0.3, 3 and 10 times too long;
- what ours solves must stay at chance when the label is hidden (`leak`).

Every 50 steps the model is scored on 512 sequences of the validation split; a run ends at the first
error of at most 0.01 or at the cap, and the figure is that of the test split then, solved from 0.02
down. Every seed stands in the result, which is written after every row and says whether it is
complete; a bar passes by its share of seeds, never by a mean. Adam, gradient norm clipped at 1,
one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory.learn import Case, learn
from benchmarks.memory.protocol import BARS, Bar
from benchmarks.memory.reach import reach_rows

RESULTS = Path(__file__).parent / "results"


def main(words: list[str] | None = None) -> None:
    asked = argparse.ArgumentParser(
        prog="python -m benchmarks.memory.run",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    asked.add_argument("--bar", type=int, choices=[1, *BARS], required=True)
    asked.add_argument("--seeds", type=int, default=5)
    asked.add_argument("--out", type=Path, default=RESULTS)
    options = asked.parse_args(words)
    torch.set_num_threads(1)
    seeds = list(range(options.seeds))
    rows: list[dict[str, Any]] = []
    cases = reach_rows(seeds) if options.bar == 1 else learning_rows(BARS[options.bar], seeds)
    for row in cases:
        rows.append(row)
        _write(options.out / f"bar{options.bar}.json", options.bar, rows)
    _write(options.out / f"bar{options.bar}.json", options.bar, rows, complete=True)
    if options.bar != 1:
        print("passed" if BARS[options.bar].passed(rows) else "NOT PASSED")


def _write(file: Path, bar: int, rows: list[dict[str, Any]], complete: bool = False) -> None:
    """Everything measured so far; `complete` only once every row is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    result = {"bar": bar, "torch": torch.__version__, "complete": complete, "rows": rows}
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def learning_rows(bar: Bar, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """One row a case: every seed's error, steps and processor seconds, and who passes."""
    for what, case in bar.cases():
        yield _row(bar, what, case, seeds)


def _row(bar: Bar, what: str, case: Case, seeds: list[int]) -> dict[str, Any]:
    errors, steps = [], []
    begun = time.process_time()
    for seed in seeds:
        error, step = learn(case, seed)
        errors.append(round(error, 4))
        steps.append(step)
    row = {"what": what, **case._asdict(), "errors": errors, "steps": steps}
    row |= {"cpu_seconds": round(time.process_time() - begun, 1)}
    row |= {"solved": sum(error <= bar.solved for error in errors), "seeds": len(seeds)}
    print(
        f"{what:12}{case.cell:6}{case.start:12}lr {case.lr:<8g}T_max {case.horizon or case.length}"
    )
    print(f"    errors {errors} steps {steps} solved {row['solved']}/{len(seeds)}", flush=True)
    return row


if __name__ == "__main__":
    main()
