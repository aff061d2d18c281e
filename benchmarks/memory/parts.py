"""What each part of a start by time scales is good for: bar 3 with one part after the other.

The case of bar 3 (latch over 500 steps, LSTM, cap 400) on seeds 100 to 109. A start is built from
torch's: time scales log-uniform from 2 to 3 x 500 or 500 steps in f, and then `writes`, the share
of -b that i gets; `others`, whether the biases of g and o are 0; `matrices`, torch's or orthogonal.
Nothing is passed or missed here.

    python -m benchmarks.memory.parts
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.memory.learn import learn
from benchmarks.memory.protocol import BARS
from benchmarks.memory.store import RESULTS, Store
from throughtime import Recurrent, initialise
from throughtime.layers.initialise import Recurrence

BAR = BARS["3"]
SEEDS = range(100, 110)


class Parts(NamedTuple):
    """A start, part by part.

    Attributes:
        longest: the longest time scale, steps.
        writes: a gate that writes gets -b times this.
        others: "zero" or "torch": the biases of the other gates.
        matrices: "torch" or "orthogonal".
    """

    longest: int
    writes: float
    others: str
    matrices: Recurrence


CASES = (
    Parts(BAR.length, 1.0, "torch", "torch"),
    Parts(3 * BAR.length, 1.0, "torch", "torch"),
    Parts(3 * BAR.length, 0.75, "torch", "torch"),
    *(
        Parts(3 * BAR.length, writes, "zero", matrices)
        for matrices, writes in product(("torch", "orthogonal"), (1.0, 0.75, 0.5))
    ),
)


def rows() -> Iterator[dict[str, Any]]:
    """One row a start."""
    case = next(case for what, case in BAR.cases() if what == "ours")
    learn(case._replace(cap=1), SEEDS[0])  # first use compiles
    for parts in CASES:
        since = time.process_time()
        found = [learn(case, seed, partial(begin, parts=parts)) for seed in SEEDS]
        spent = round(time.process_time() - since, 1)
        errors = [round(one.error, 4) for one in found]
        steps = [one.steps for one in found]
        solved = sum(error <= BAR.solved for error in errors)
        yield {**parts._asdict(), "solved": solved, "errors": errors, "steps": steps,
               "cpu_seconds": spent}  # fmt: skip


def begin(model: nn.Module, parts: Parts) -> None:
    """Give an LSTM this start."""
    layer = model.get_submodule("recurrent")
    assert isinstance(layer, Recurrent)
    initialise(layer, "torch")
    drawn = {gate: layer.gate(gate).bias.clone() for gate in "go"}
    initialise(layer, None if parts.matrices == "torch" else parts.matrices,
               timescales=(2, parts.longest))  # fmt: skip
    with torch.no_grad():
        layer.gate("i").bias = -parts.writes * layer.gate("f").bias
        for gate in "go" if parts.others == "torch" else "":
            layer.gate(gate).bias = drawn[gate]


def main() -> None:
    """Measure and keep every row."""
    torch.set_num_threads(1)
    store = Store(RESULTS / "parts.json")
    for row in rows():
        print(row, flush=True)
        store.keep(row)
    store.write(complete=True)


if __name__ == "__main__":
    main()
