"""The bars that a run is held against."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.speed import first_use
from benchmarks.speed.bar import Bar, Value, Wants
from benchmarks.speed.peers import OURS
from benchmarks.speed.row import Row
from benchmarks.speed.works import BUILT_IN, GROUPS, cases


def beside(name: str) -> Value:
    """A contender's time over ours."""
    return lambda row: float(row["ratios"][name]["ratio"])


def best(row: Row) -> float:
    """The time of the fastest other over ours."""
    return float(row["ratios"][row["best"]]["ratio"])


def share_of_peak(row: Row) -> float:
    """Our flop/s over those of multiply-adds on registers, both by the clock."""
    return float(row["ratios"]["peak"]["ratio"])


def time_of_lstm(row: Row) -> float:
    """Our time over our LSTM's."""
    return 1 / float(row["ratios"]["our LSTM"]["ratio"])


def per_flop_of_lstm(row: Row) -> float:
    """Our time per flop over our LSTM's."""
    flops = row["times"]["our LSTM"]["flops"] / row["times"][OURS]["flops"]
    return flops * time_of_lstm(row)


def of(work: str, cell: str | None = None, H: Callable[[int], bool] | None = None) -> Wants:
    """Rows of a work, of a cell, of sizes H."""
    return lambda row: (
        row["work"] == work and (cell is None or row["cell"] == cell) and (H is None or H(row["H"]))
    )


def _training() -> list[Bar]:
    goals = {"RNN": (4.5, 1.1), "GRU": (5.0, 1.1), "LSTM": (1.7, 0.85)}
    bars = []
    for cell, (mean, least) in goals.items():
        rows, value = of("training", cell), beside("torch.nn")
        text = f"{cell} training step against torch.nn"
        bars.append(Bar(f"{text}, geometric mean", rows, value, "geometric mean", mean))
        bars.append(Bar(f"{text}, every shape", rows, value, "lowest", least))
    return bars


def _inference() -> list[Bar]:
    bars = []
    for cell in (None, *BUILT_IN):
        text = f"{cell or 'all cells'} inference against the best of three"
        rows = of("inference", cell)
        bars.append(Bar(f"{text}, geometric mean", rows, best, "geometric mean", 1.25))
        bars.append(Bar(f"{text}, every shape", rows, best, "lowest", 0.9))
    return bars


def _own() -> list[Bar]:
    loop, text = beside("eager loop"), "own cell against the eager loop"
    per_flop = "own cell's time per flop over our LSTM's"
    return [
        Bar(f"{text}, H 128", of("own", H=_is(128)), loop, "lowest", 6.0),
        Bar(f"{text}, H 32", of("own", H=_is(32)), loop, "lowest", 30.0),
        Bar(per_flop, of("own"), per_flop_of_lstm, "highest", 1.15),
    ]


def _is(size: int) -> Callable[[int], bool]:
    return lambda H: H == size


def _peak() -> list[Bar]:
    wide, narrow, step = (
        of("recurrent", H=_least(256)),
        of("recurrent", H=_is(128)),
        of("whole step"),
    )
    share = share_of_peak
    return [
        Bar("recurrent part, share of peak, H >= 256", wide, share, "lowest", 0.80),
        Bar("recurrent part, share of peak, H 128", narrow, share, "lowest", 0.72),
        Bar("training step as a whole, share of peak", step, share, "lowest", 0.65),
    ]


def _least(size: int) -> Callable[[int], bool]:
    return lambda H: H >= size


def _gru() -> list[Bar]:
    return [
        Bar(f"{work}, time over our LSTM's", of(work), time_of_lstm, "highest", 0.85)
        for work in ("GRU training", "GRU inference")
    ]


def _large() -> list[Bar]:
    goals = {"RNN": 1.0, "GRU": 1.0, "LSTM": 0.85}
    return [
        Bar(f"{cell}, {work}, against torch.nn", of(work, cell), beside("torch.nn"), "lowest", goal)
        for work in ("large training", "large inference")
        for cell, goal in goals.items()
    ]


def _first() -> list[Bar]:
    goals = {
        ("forward and backward", "empty"): 0.6,
        ("forward", "empty"): 0.3,
        ("forward and backward", "warm"): 0.02,
        ("forward", "warm"): 0.02,
    }
    bars = []
    for (what, cache), goal in goals.items():
        text = f"first use, {what}, {cache} cache, processor s"
        bars.append(Bar(text, _key(first_use.key(what, cache)), _cpu, "highest", goal))
    return bars


def _key(key: str) -> Wants:
    return lambda row: row["key"] == key


def _cpu(row: Row) -> float:
    return float(row["cpu_s"]["median"])


def asked(bar: Bar) -> int:
    """How many rows a bar is about, over the whole grid."""
    every = [
        {"key": c.key, "work": c.work.name, "cell": c.cell, "H": c.shape.H}
        for c in cases(list(GROUPS), [*BUILT_IN, "own"], full=True)
    ]
    uses = (first_use.key(what, cache) for what in first_use.WORKS for cache in first_use.CACHES)
    every += [{"key": key, "work": "first"} for key in uses]
    return sum(map(bar.wants, every))


BARS = [*_training(), *_inference(), *_own(), *_peak(), *_gru(), *_large(), *_first()]
