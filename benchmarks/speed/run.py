"""Measures our layers beside the others, shape by shape, and says which bars are met.

    python -m benchmarks.speed.run                  the stated part of the grid, 10 minutes at most
    python -m benchmarks.speed.run --full           the whole grid, about an hour
    python -m benchmarks.speed.run --work training --cells GRU --shapes 16x50x128
    python -m benchmarks.speed.run --full --resume benchmarks/speed/results/FILE.json

Everything is float32 on torch's own number of threads. Contenders take turns (A B C A B C), each
repeat after a short pause and a call that is not timed; a ratio is that of the medians, its
quartiles are those of the ratios turn by turn. Values and gradients are compared at the very shape
first: a red one has no ratio. One JSON a run, written after every row. On a machine that others use
too, `--threads 1 --clock cpu` compares processor time, which they cannot take away.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import first_use
from benchmarks.speed.machine import describe_machine, describe_source, describe_versions
from benchmarks.speed.measure import Effort
from benchmarks.speed.peers import OURS
from benchmarks.speed.peers.ours import usual_backend
from benchmarks.speed.row import Row, headline, measure_case
from benchmarks.speed.store import Store, resume, usual_file
from benchmarks.speed.table import bars, milliseconds, summary
from benchmarks.speed.works import BUILT_IN, GROUPS, cases
from throughtime.backends import check_backend

STATED, WHOLE = Effort(seconds=1.5), Effort(seconds=2.0)
MINUTES = 9.5  # of the stated part; what is left then is left out, and the bars say so
CLOCK_HELP = "cpu: ratios of processor time, with --threads 1\n(threads that wait are counted)"
QUIET = 0.05  # share of the machine; rows during which others took more are pointed out
FIRST_REPEATS = {False: 3, True: 7}


def main(words: list[str] | None = None) -> None:
    options = parse(words)
    store = begin(options)
    begun = time.monotonic()
    minutes = options.minutes or (float("inf") if options.full else MINUTES)
    machine(store)
    if "first" in options.work:
        first(store, options)
    measure(store, options, begun + 60 * minutes)
    report(store)


def parse(words: list[str] | None) -> argparse.Namespace:
    """What was asked for."""
    asked = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.run",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    asked.add_argument("--full", action="store_true", help="the whole grid")
    asked.add_argument("--work", nargs="+", choices=GROUPS, default=list(GROUPS))
    asked.add_argument("--cells", nargs="+", choices=(*BUILT_IN, "own"), default=[*BUILT_IN, "own"])
    asked.add_argument("--shapes", nargs="+", default=None, help="B, T, H as 16x50x128")
    asked.add_argument("--backend", default=usual_backend(), help="of our layers")
    asked.add_argument("--threads", type=int, default=None, help="in place of torch's own number")
    asked.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=CLOCK_HELP)
    asked.add_argument("--seconds", type=float, default=None, help="of each row")
    asked.add_argument("--minutes", type=float, default=None, help="of the whole run")
    asked.add_argument("--out", type=Path, default=None, help="the JSON")
    asked.add_argument(
        "--quiet",
        type=float,
        default=1.0,
        help="measure anew what others disturbed by more",
    )
    asked.add_argument("--resume", type=Path, default=None, help="a JSON to go on with")
    options = asked.parse_args(words)
    try:
        check_backend(options.backend)
    except ValueError as error:
        asked.error(str(error))
    return options


def begin(options: argparse.Namespace) -> Store:
    """An empty store, or the one to go on with."""
    if options.threads:
        torch.set_num_threads(options.threads)
    about: dict[str, Any] = {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "source": describe_source(),
        "backend": options.backend,
        "clock": options.clock,
        "meaning": __doc__,
    }
    if options.resume:
        return resume(options.resume, about, options.quiet)
    return Store(options.out or usual_file(about["source"], options.full), about)


def machine(store: Store) -> None:
    """The machine's own figures, once a run."""
    print(
        "The machine: multiply-adds on registers in GFLOP/s, by the clock and per second of a\n"
        "core's own time (which other programs cannot take away); reading in GB/s; of one thread\n"
        "and of all at once."
    )
    if "peak" not in store.content:
        from benchmarks.speed.peak import measure_machine

        store.content["peak"] = measure_machine(torch.get_num_threads())
        store.write()
    for name, value in store.content["peak"].items():
        print(f"  {name:32} {value:.4g}")


def first(store: Store, options: argparse.Namespace) -> None:
    """First uses, in fresh processes."""
    print(f"\n{first_use.__doc__}")
    for what in first_use.WORKS:
        for cache in first_use.CACHES:
            if not store.has(first_use.key(what, cache)):
                repeats = FIRST_REPEATS[options.full]
                row = first_use.measure_first_use(what, cache, repeats, options.backend)
                store.add(row)
                cpu = row["cpu_s"]
                print(f"  {what}, {cache} cache: {cpu['median']:.3f} s of processor time")


def measure(store: Store, options: argparse.Namespace, end: float) -> None:
    """Every case that is not there yet, until time is up."""
    effort = WHOLE if options.full else STATED
    if options.seconds is not None:
        effort = Effort(options.seconds)
    said, left = "", []
    for case in cases(options.work, options.cells, options.full, options.shapes):
        if store.has(case.key):
            continue
        if time.monotonic() > end:
            left.append(case.key)
            continue
        if case.work.name != said:
            print(f"\n{case.work.name}. {case.work.meaning}")
            said = case.work.name
        row = measure_case(case, effort, options.backend, options.clock)
        store.add(row)
        print(f"  {line(row)}", flush=True)
        gc.collect()
    if left:
        print(f"\nTime is up; left out: {', '.join(left)}")


def line(row: Row) -> str:
    """One row in one line; no ratio where it is red."""
    times = ", ".join(
        f"{'ours' if name == OURS else name} {milliseconds(row, name):.4g} ms"
        for name in row["times"]
    )
    head = headline(row)
    if head is None:
        verdict = "RED, no ratio"
    else:
        name, found = head
        verdict = f"{found['ratio']:.2f} ({found['q1']:.2f} to {found['q3']:.2f}) beside {name}"
    red = "".join(f"; {n} red: {row['parity'][n]}" for n in row["red"])
    loud = (row["others_share"] or 0) > QUIET
    others = f"; others took {row['others_share']:.0%}" if loud else ""
    shape = f"B {row['B']} T {row['T']} H {row['H']}"
    return f"{row['cell']:4} {shape:20} {verdict}; {times}{red}{others}"


def report(store: Store) -> None:
    """The spread over shapes, the bars, and where the JSON is."""
    print(
        "\nRatios over shapes: geometric mean, lowest, quartiles, highest; below 1 we are slower.\n"
    )
    print("\n".join(summary(store.rows)))
    loud = sum((row.get("others_share") or 0) > QUIET for row in store.rows)
    if loud:
        print(
            f"\nOther programs took more than {QUIET:.0%} of the machine during {loud} rows; "
            f"--resume FILE --quiet {QUIET} measures those anew."
        )
    if store.content["clock"] == "cpu":
        print("\nBy processor time; the bars themselves are meant by the wall's clock.")
    print("\nThe bars:\n")
    print(bars(store.rows))
    print(f"\nEvery row: {store.file}")


if __name__ == "__main__":
    main()
