"""Measures small calls of every kind: a table of the lowest and the mean ratio of each.

    python -m benchmarks.overhead.grid [--turns 9] [--shapes 6] [--seed 0] [--threads N]

Each drop-in as it is, bidirectional, with two layers, in float64, with states given, packed with
rows of one length and of several, and the single-step cells, as they are and with states given, at
shapes drawn from T 1 to 8, B 1 to 4 and H 1 to 64 (cells: B 1 and 16, H 16 to 256); then LSTM H 16
at 400 shapes in turn, T 2 to 41 and B 1 to 10. On torch's own number of threads, unless another is
given. The ratio is torch.nn's time / ours, the processor's on one thread, and by the clock on more.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import throughtime
from benchmarks.overhead.run import Work, agree, measure

KINDS = ("RNN", "GRU", "LSTM")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "bidirectional": {"bidirectional": True}, "two layers": {"num_layers": 2},
    "float64": {"dtype": torch.float64}, "state given": {}, "packed": {}, "packed, ragged": {},
    "packed, one step": {}, "batch first": {"batch_first": True},
}  # fmt: skip

Make = Callable[[random.Random], tuple[nn.Module, tuple[Any, ...], str]]


def flat(value: Any) -> list[Tensor]:
    """All tensors of a result."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [v for part in value for v in flat(part)]


def works(module: nn.Module, args: tuple[Any, ...]) -> tuple[Work, Work]:
    """A call in inference, and a training step."""

    def infer() -> object:
        with torch.no_grad():
            return module(*args)

    def train() -> None:
        flat(module(*args))[0].sum().backward()

    return infer, train


def layer_of(kind: str, variant: str) -> Make:
    """What draws a layer and a batch."""

    def make(draw: random.Random) -> tuple[nn.Module, tuple[Any, ...], str]:
        T, B, H, I = (draw.randint(1, n) for n in (8, 4, 64, 32))
        T = 1 if variant == "packed, one step" else T
        options = VARIANTS[variant]
        layer: Any = getattr(nn, kind)(I, H, **options)
        x: Any = torch.randn(T, B, I, dtype=options.get("dtype", torch.float32))
        state = torch.randn(1, B, H)
        if variant == "batch first":
            x = x.transpose(0, 1).contiguous()
        if variant.startswith("packed"):
            lengths = [draw.randint(1, T) if "ragged" in variant else T for _ in range(B)]
            x = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        given = ((state, state) if kind == "LSTM" else state,) if variant == "state given" else ()
        return layer, (x, *given), f"T {T} B {B} I {I} H {H}"

    return make


def cell_of(kind: str, given: bool) -> Make:
    """What draws a single-step cell and a batch, and where it starts if that is given."""

    def make(draw: random.Random) -> tuple[nn.Module, tuple[Any, ...], str]:
        B, H = draw.choice((1, 16)), draw.randint(16, 256)
        h, c = torch.randn(B, H), torch.randn(B, H)
        start = ((h, c) if kind == "LSTM" else h,) if given else ()
        return getattr(nn, f"{kind}Cell")(H, H), (torch.randn(B, H), *start), f"B {B} H {H}"

    return make


def cases() -> Iterator[tuple[str, Make]]:
    """What is measured."""
    for variant, kind in itertools.product(VARIANTS, KINDS):
        yield f"{kind}, {variant}", layer_of(kind, variant)
    for kind, given in itertools.product(KINDS, (False, True)):
        yield f"{kind}Cell{', state given' * given}", cell_of(kind, given)


def report(name: str, ratios: list[tuple[float, str]]) -> str:
    """The lowest, with its shape, and the mean."""
    lowest, shape = min(ratios)
    mean = statistics.mean(r for r, _ in ratios)
    return f"{name:10} mean {mean:5.2f}, lowest {lowest:5.2f} at {shape:22}"


def many_shapes(turns: int) -> Iterator[tuple[str, float]]:
    """LSTM H 16, 400 shapes in turn: each way's ratio."""
    theirs = nn.LSTM(8, 16)
    ours = throughtime.from_torch(theirs)
    xs = [torch.randn(T, B, 8) for T in range(2, 42) for B in range(1, 11)]
    for way in (0, 1):

        def every(module: nn.Module, way: int = way) -> Work:
            each = [works(module, (x,))[way] for x in xs]
            return lambda: [work() for work in each]

        pair = every(theirs), every(ours)
        yield ("inference", "training")[way], measure(pair, turns, calls=1)[2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    own = torch.get_num_threads()
    for name, value in (("turns", 9), ("shapes", 6), ("seed", 0), ("threads", own)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, make in cases():
        draw = random.Random(f"{args.seed} {name}")
        found: tuple[list[tuple[float, str]], list[tuple[float, str]]] = ([], [])
        for _ in range(args.shapes):
            theirs, given, shape = make(draw)
            ours = throughtime.from_torch(theirs)
            agree(theirs, ours, *given)
            pairs = zip(works(theirs, given), works(ours, given), strict=True)
            for pair, ratios in zip(pairs, found, strict=True):
                ratios.append((measure(pair, args.turns, calls=10)[2], shape))
        texts = [report(way, r) for way, r in zip(("inference", "training"), found, strict=True)]
        print(f"{name:24}", *texts, flush=True)
    for way, ratio in many_shapes(max(3, args.turns // 3)):
        print(f"LSTM, 400 shapes in turn  {way} {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
