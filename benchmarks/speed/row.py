"""One case measured: parity first, then memory, then times; a row of the results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.speed.contender import Contender
from benchmarks.speed.material import material
from benchmarks.speed.measure import Clock, Effort, Timing, interleave
from benchmarks.speed.memory import added_peak
from benchmarks.speed.neighbours import now, others_share
from benchmarks.speed.parity import compare
from benchmarks.speed.peers import OURS, RIVALS, build
from benchmarks.speed.spread import quartiles, ratio
from benchmarks.speed.works import Case

Row = dict[str, Any]


def measure_case(case: Case, effort: Effort, backend: str, clock: Clock = "wall") -> Row:
    """The whole row, its ratios by the clock named; a red contender has times and no ratio."""
    m = material(case.cell, case.shape, case.work.mode, backend)
    contenders = {name: build(name, m) for name in (OURS, *case.work.beside)}
    parity = check(case, contenders, backend)
    added = {name: added_peak(c) for name, c in contenders.items()}
    begun = now()
    timings = interleave({name: c.run for name, c in contenders.items()}, effort)
    row = head(case) | {
        "clock": clock,
        "parity": parity,
        "others_share": others_share(begun, now()),
    }
    row["times"] = {
        name: describe(timings[name], c.flops) | {"added_peak_bytes": added[name]}
        for name, c in contenders.items()
    }
    flops = {name: c.flops for name, c in contenders.items()}
    return row | compared(parity, {n: t.by(clock) for n, t in timings.items()}, flops)


def head(case: Case) -> Row:
    """What the row is about."""
    return {"key": case.key, "work": case.work.name, "cell": case.cell} | asdict(case.shape)


def check(case: Case, contenders: dict[str, Contender], backend: str) -> dict[str, Any]:
    """Name -> parity with the standard: torch.nn, and the loop by hand for a cell of one's own.

    The standard itself is not in it. Our LSTM beside another cell has torch.nn's LSTM as its own.
    """
    found: dict[str, Any] = {}
    for cell, names in by_cell(case.cell, contenders).items():
        standard = "eager loop" if cell == "own" else "torch.nn"
        m = material(cell, case.shape, case.work.mode, backend)
        judge = contenders.get(standard) or build(standard, m)
        assert judge.values is not None
        expected = judge.values()
        for name in names:
            values = contenders[name].values
            if name != standard and values is not None:
                found[name] = asdict(compare(expected, values()))
    return found


def by_cell(cell: str, contenders: dict[str, Contender]) -> dict[str, list[str]]:
    """The contenders that compute each cell."""
    found: dict[str, list[str]] = {}
    for name in contenders:
        found.setdefault("LSTM" if name == "our LSTM" else cell, []).append(name)
    return found


def describe(timing: Timing, flops: float) -> dict[str, Any]:
    """Median and quartiles of a call, and its arithmetic over the median."""
    wall, cpu = quartiles(timing.wall), quartiles(timing.cpu)
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "repeats": len(timing.wall),
        "calls": timing.calls,
        "flops": flops,
        "gflops": flops / wall["median"] / 1e9,
        "gflops_cpu_s": flops / max(cpu["median"], 1e-12) / 1e9,
    }


def compared(
    parity: dict[str, Any], repeats: dict[str, list[float]], flops: dict[str, float]
) -> Row:
    """Each green contender beside ours; nothing where one of our own is red.

    Args:
        parity: name -> what the comparison found.
        repeats: name -> seconds a call, turn by turn.
        flops: name -> the arithmetic of a call.

    Returns:
        red: the red ones. ratios: name -> its time over ours, or for "peak" our flop/s over its.
        best: the fastest rival.
    """
    red = [name for name, found in parity.items() if not found["ok"]]
    if {OURS, "our LSTM"} & set(red):
        return {"red": red, "ratios": {}, "best": None}
    ours = repeats[OURS]
    found = {n: ratio(t, ours) for n, t in repeats.items() if n != OURS and n not in red}
    if "peak" in found:
        scale = flops[OURS] / flops["peak"]
        found["peak"] = {name: scale * value for name, value in found["peak"].items()}
    rivals = [name for name in found if name in RIVALS]
    best = min(rivals, key=lambda name: found[name]["ratio"], default=None)
    return {"red": red, "ratios": found, "best": best}


def headline(row: Row) -> tuple[str, dict[str, float]] | None:
    """What the row is measured for: beside whom, and the ratio; None where it is red."""
    name = row["best"] or next(iter(row["ratios"]), None)
    return None if name is None else (name, row["ratios"][name])
