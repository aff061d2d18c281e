"""Measures how far back cells learn from different starts: bars 1 to 5, 8 and 9.

    python -m benchmarks.memory.run --bar 2

Bars 2 to 5 and the second half of 8 train. Rows of such a bar share data, seed, steps, batch size
and learning rate; only the start differs. Traps against which each bar is fair, published with it:

- torch's default also gets learning rates 5e-4, 1e-3, 2e-3 and 5e-3;
- the time scale is told to ours, 3 times the length, so ours also gets 0.1, 0.3, 1 and 10 times;
- with the label hidden (`leak`) no error may leave chance: each bar says how low is too low.

Every 50 steps the model is scored on the validation split; a run ends at the first error of at most
half of what counts as solved, or at the cap, and the figure is that of the test split then. Every
seed stands in the result, which is written after each: a killed bar of these goes on where it was,
if machine, versions and commit, which the file names, are the same. Bars 1, 8a and 9 begin anew.
One step of each cell comes before the first row, so that no row's seconds hold its compilation.
A bar passes by its share of seeds, not by a mean. Adam, gradient norm clipped at 1 where the row
does not say otherwise, one thread. `--calibrate` runs the rows without the traps on seeds 100 to
104. What bars 4, 8b and 9 ask was fixed after that, of seeds 0 to 4; the others have no such run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.memory import clipped, published, reach
from benchmarks.memory.learn import learn
from benchmarks.memory.protocol import BARS, TRAPS, Bar
from benchmarks.memory.store import RESULTS, Store
from benchmarks.memory.verdict import free, passed, rare

OTHER = {"1": reach, "8a": published, "9": clipped}


def main(words: list[str] | None = None) -> None:
    asked = argparse.ArgumentParser(
        prog="python -m benchmarks.memory.run",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = sorted([*OTHER, *BARS])
    asked.add_argument("--bar", choices=names, required=True)
    asked.add_argument("--seeds", type=int, default=5)
    asked.add_argument("--calibrate", action="store_true", help="on seeds from 100 on")
    asked.add_argument("--out", type=Path, default=RESULTS)
    options = asked.parse_args(words)
    torch.set_num_threads(1)
    first = 100 if options.calibrate else 0
    seeds = list(range(first, first + options.seeds))
    file = options.out / f"bar{options.bar}{'-calibration' * options.calibrate}.json"
    try:
        store = Store(file, resume=options.bar in BARS)
    except ValueError as error:
        asked.error(str(error))
    if options.bar in OTHER:
        _measure(options.bar, seeds, store)
    else:
        _train(BARS[options.bar], seeds, store, options.calibrate)
    store.write(complete=True)


def _measure(bar: str, seeds: list[int], store: Store) -> None:
    """A bar that has rows of its own kind, from the beginning."""
    for row in OTHER[bar].rows(seeds):
        print(row, flush=True)
        store.keep(row)
    for what, meets in OTHER[bar].verdicts(store.rows).items():
        _say(what, meets)


def _train(bar: Bar, seeds: list[int], store: Store, calibrate: bool) -> None:
    """Every case and seed that is not stored yet, then the verdict."""
    _warm_up(bar)
    for what, case in bar.cases():
        if calibrate and what in TRAPS:
            continue
        row = store.row(what, case)
        for seed in seeds[: bar.trap_seeds if what in TRAPS else None]:
            if seed not in row["seed"]:
                begun = time.process_time()
                store.add(row, seed, learn(case, seed), bar.solved, begun)
        told = case.horizon or "as it comes"
        print(f"{what:15}{case.cell:6}{case.start:12}lr {case.lr:<8g}T_max {told}")
        print(f"    errors {row['errors']} steps {row['steps']}", flush=True)
    _say("the bar" + ", without its traps" * calibrate, passed(bar, store.rows))
    if bar.unclipped:
        _say("bar 9 (iii), without clipping", free(bar, store.rows))
        _say("bar 9 (iii), rarely clipped", rare(store.rows))


def _warm_up(bar: Bar) -> None:
    """One step of every cell: first use compiles, which is no part of a training's seconds."""
    for case in {case.cell: case for _, case in bar.cases()}.values():
        learn(case._replace(cap=1), 0)


def _say(what: str, meets: bool) -> None:
    print(f"{what}: {'passed' if meets else 'NOT PASSED'}")


if __name__ == "__main__":
    main()
