"""Measures calls that compute next to nothing, so that what is left is the way to them.

    python -m benchmarks.overhead.run [--turns 41]

One thread, float32, I = 8, H = 16, one layer, B 1; a training step is forward, sum and backward.
torch.nn and ours take turns; a turn is some dozens of calls, of which the mean counts. Printed are
the medians over turns, in microseconds, and the median of the turns' ratios torch.nn / ours.

Last comes what `throughtime.train.loop` adds to a step: the loop with what keeps a run, against
forward, backward, clipping and the optimizer of the same model on the same batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

import throughtime
from throughtime.tasks import find
from throughtime.train.learner import Learner, begin_model, clip, make_optimizer
from throughtime.train.loop import Journal, Keeper, Patience
from throughtime.train.run import create, resolve

I, H, CALLS = 8, 16, 50
BARS = {  # T 4, B 1: what the calls must reach, inference and training
    "RNN": (2.5, 1.1), "GRU": (4.0, 2.2), "LSTM": (4.0, 2.2),
}  # fmt: skip
LOOP_BAR = 60.0  # microseconds that a training step may take beside the model
TOLERANCE = 1e-5

Work = Callable[[], object]


def works(module: nn.Module, x: Tensor) -> tuple[Work, Work]:
    """A call in inference, and a training step."""

    def infer() -> object:
        with torch.no_grad():
            return module(x)

    def train() -> None:
        y = module(x)
        (y if isinstance(y, Tensor) else y[0]).sum().backward()

    return infer, train


def turn(work: Work, calls: int) -> float:
    """Microseconds that a call takes, the mean of so many: of the processor, if one thread works,
    else by the clock."""
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = now()
    for _ in range(calls):
        work()
    return (now() - start) / calls * 1e6


def measure(pair: tuple[Work, Work], turns: int, calls: int = CALLS) -> tuple[float, float, float]:
    """Of torch.nn's work and ours: medians in microseconds, and the median ratio."""
    for work in pair:
        turn(work, calls)
    found = [(turn(pair[0], calls), turn(pair[1], calls)) for _ in range(turns)]
    torchs, ours = zip(*found, strict=True)
    ratio = statistics.median(a / b for a, b in found)
    return statistics.median(torchs), statistics.median(ours), ratio


def cases() -> Iterator[tuple[str, nn.Module, Tensor, tuple[float, float] | None]]:
    """What is measured: torch.nn's module, x, and what the ratios must reach."""
    for name, bars in BARS.items():
        for T in (4, 1):
            layer = getattr(nn, name)(I, H)
            yield f"{name} T {T}", layer, torch.randn(T, 1, I), bars if T == 4 else (1.0, 1.0)
    for name in BARS:
        yield f"{name}Cell", getattr(nn, f"{name}Cell")(I, H), torch.randn(1, I), (1.0, 1.0)


def agree(theirs: nn.Module, ours: nn.Module, *given: object) -> None:
    """Raise unless both give the same numbers."""
    for a, b in zip(theirs(*given), ours(*given), strict=True):
        pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
        for v, w in pairs:
            if v is not None:
                torch.testing.assert_close(v, w, rtol=0, atol=TOLERANCE)


def loop_works(folder: Path) -> Iterator[tuple[Work, Work]]:
    """The bare work of a training step, and the same step in the loop of a run."""
    kind = find("latch")
    many = 10**6  # no checkpoint comes, which is no part of a step
    sizes = {"length": 4, "batch_size": 1, "hidden": H}
    recipe = resolve(kind, {**sizes, "steps": many, "checkpoint_every": many})
    run, task = create(folder / "run", recipe), kind(recipe)
    batch = task.epoch(0)[0]
    task.epoch = lambda number: [batch]  # type: ignore[method-assign]
    model = begin_model(task)
    rule, parameters = make_optimizer(recipe, model.parameters()), list(model.parameters())

    def bare() -> None:
        loss = task.loss(model, batch)
        rule.zero_grad()
        loss.backward()
        clip(recipe, parameters)
        rule.step()

    with closing(Journal(run.metrics)) as journal:
        learner = Learner(task, begin_model(task))
        watchers = [Patience(task.monitor, 10), Keeper(run, journal, Patience(task.monitor, 10))]

        def whole() -> None:
            for one in watchers:
                one.before_step(learner)
            learner.step()
            for one in watchers:
                one.after_step(learner)

        yield bare, whole


def loop_microseconds(turns: int) -> float:
    """What the loop adds to a training step."""
    with tempfile.TemporaryDirectory() as folder:
        for bare, whole in loop_works(Path(folder)):
            for work in (bare, whole):
                turn(work, CALLS)
            pairs = [(turn(bare, CALLS), turn(whole, CALLS)) for _ in range(turns)]
    return statistics.median(b - a for a, b in pairs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=41)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    print(f"{'':12}{'inference':>36}{'training':>36}")
    for name, theirs, x, bars in cases():
        ours = throughtime.from_torch(theirs)
        agree(theirs, ours, x)
        line = f"{name:12}"
        pairs = zip(works(theirs, x), works(ours, x), strict=True)
        for pair, bar in zip(pairs, bars or (), strict=True):
            a, b, ratio = measure(pair, turns)
            met = "met" if ratio >= bar else "MISSED"
            line += f"{a:8.0f} /{b:5.0f} us {ratio:5.2f} ({bar}: {met})"
        print(line, flush=True)
    added = loop_microseconds(turns)
    met = "met" if added <= LOOP_BAR else "MISSED"
    print(f"a training step of the loop: {added:.0f} us beside the model ({LOOP_BAR:.0f}: {met})")


if __name__ == "__main__":
    main()
