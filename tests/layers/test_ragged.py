"""Lengths, resets, packed and unbatched input and dilation against the formulas written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.overrides import TorchFunctionMode

from tests.layers.plain import agree, build, elman, flat, gru, lstm, plain, random
from tests.layers.test_options import KINDS, start
from throughtime import cells
from throughtime.errors import OptionError

BACKENDS = ("reference", "auto")
LENGTHS: dict[str, Any] = {
    "list": [4, 0, 5, 2],
    "tuple": (5, 5, 1, 3),
    "int32": torch.tensor([0, 1, 2, 3], dtype=torch.int32),
    "int64": torch.tensor([3, 3, 5, 0]),
    "uint8": torch.tensor([1, 5, 0, 2], dtype=torch.uint8),
    "uint16": torch.tensor([1, 5, 0, 2], dtype=torch.uint16),
    "array": np.array([2, 4, 1, 1]),
    "generator": lambda: (n for n in (2, 0, 3, 1)),
    "all full": [5, 5, 5, 5],
    "all empty": [0, 0, 0, 0],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LENGTHS)
def test_lengths(kind: str, backend: str) -> None:
    lengths = LENGTHS[kind]
    made = list(lengths()) if callable(lengths) else lengths
    layer = build(cells.LSTM(), 3, [4, 2], bidirectional=True, backend=backend)
    x, state = random(5, 4, 3), start(layer, 4)
    found = layer(x, state, lengths=lengths() if callable(lengths) else lengths)
    expected = plain(layer, lstm, x, state=state, lengths=made)
    agree(found, expected[:2], [x, *flat(state), *layer.parameters()])


RESETS: dict[str, list[tuple[int, int]]] = {
    "at the first step": [(0, 0), (0, 2), (0, 1)],
    "behind the end": [(4, 0), (3, 3), (0, 1), (2, 3)],
    "at the last step": [(3, 0), (4, 2), (1, 3)],
    "everywhere": [(t, b) for t in range(5) for b in range(4)],
    "two together": [(1, 2), (2, 2), (2, 0)],
}


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("ragged", [True, False])
def test_reset_with_a_state(kind: str, reset: str, ragged: bool) -> None:
    cell, step = KINDS[kind]
    layer = build(cell, 3, [4, 2], bidirectional=True)
    x, state = random(5, 4, 3), start(layer, 4)
    where = torch.zeros(5, 4, dtype=torch.bool)
    for t, b in RESETS[reset]:
        where[t, b] = True
    options: Any = {"reset": where, "lengths": [4, 0, 5, 2] if ragged else None}
    expected = plain(layer, step, x, state=state, **options)
    agree(layer(x, state, **options), expected[:2], [x, *flat(state), *layer.parameters()])
    agree(layer(x, state, **{**options, "reset": where.tolist()}), expected[:2])


def test_layouts() -> None:
    for options in ({}, {"zoneout": 0.3}, {"dilation": 2}, {"merge": "sum"}):
        first = build(cells.GRU(), 3, 4, bidirectional=True, batch_first=True, **options).eval()
        second = build(cells.GRU(), 3, 4, bidirectional=True, **options).eval()
        second.load_state_dict(first.state_dict())
        x, reset = random(5, 4, 3), torch.rand(5, 4) < 0.3
        given: Any = {"lengths": [4, 0, 5, 2]}
        y, state = second(x, reset=reset, **given)
        turned = first(x.transpose(0, 1), reset=reset.T, **given)
        agree(turned, (y.transpose(0, 1), state), [x])
        agree(first(x.transpose(0, 1)), (second(x)[0].transpose(0, 1), second(x)[1]))
        trace = first.trace(x.transpose(0, 1), reset=reset.T, **given)
        agree(trace[0]["h"].transpose(0, 1), second.trace(x, reset=reset, **given)[0]["h"])


@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch(batch_first: bool) -> None:
    layer = build(cells.LSTM(), 3, [4, 2], bidirectional=True, batch_first=batch_first)
    x, state, reset = random(5, 3), start(layer, 1), torch.tensor([0, 1, 0, 1, 1]) > 0
    alone = tuple(tuple(v.squeeze(1) for v in part) for part in state)
    for options in ({}, {"lengths": [3]}, {"lengths": torch.tensor([0])}):
        y, last, trace = plain(
            layer, lstm, x.unsqueeze(1), state=state, reset=reset.unsqueeze(1), **options
        )
        found = layer(x, alone, reset=reset, **options)
        agree(found, (y[:, 0], [[v[:, 0] for v in part] for part in last]), [x, *flat(state)])
        seen = layer.trace(x, alone, reset=reset, **options)
        agree([list(part.values()) for part in seen], [[v[:, 0] for v in p] for p in trace])


def packed_rows(p: PackedSequence, rows: int) -> list[Tensor]:
    """The rows of a PackedSequence in the order they were packed, by its definition."""
    found: list[list[Tensor]] = [[] for _ in range(rows)]
    at = 0
    for n in p.batch_sizes.tolist():
        for i in range(n):
            row = i if p.sorted_indices is None else int(p.sorted_indices[i])
            found[row].append(p.data[at + i])
        at += n
    return [torch.stack(v) for v in found]


@pytest.mark.parametrize("lengths", [[5, 4, 4, 1], [2, 5, 1, 4]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("options", [{}, {"dilation": 2}], ids=["plain", "dilated"])
@pytest.mark.parametrize("reset", [True, False])
def test_packed(lengths: list[int], options: Any, reset: bool) -> None:
    layer = build(cells.LSTM(), 3, [4, 2], bidirectional=True, **options)
    x = random(5, 4, 3)
    state = None if options else start(layer, 4)
    where = torch.rand(5, 4) < 0.4 if reset else None
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    if lengths == sorted(lengths, reverse=True):
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=True)
    y, last, traces = plain(
        layer, lstm, x, state=state, lengths=lengths, reset=where,
        dilations=[options.get("dilation", 1)] * 2,
    )  # fmt: skip
    out, final = layer(packed, state, reset=where)
    expected = [y[:n, b] for b, n in enumerate(lengths)]
    leaves = [x, *layer.parameters(), *flat(state or ())]
    agree((packed_rows(out, 4), final), (expected, last), leaves)
    seen = layer.trace(packed, state, reset=where)
    for part, states in zip(seen, traces, strict=True):
        for v, sequence in zip(part.values(), states, strict=True):
            agree(packed_rows(v, 4), [sequence[:n, b] for b, n in enumerate(lengths)])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_packed_with_the_masks_of_training_is_padded(backend: str) -> None:
    """Masks are drawn for the padded steps and rows, in the order of the packed ones."""
    layer = build(
        cells.LSTM(), 3, [4, 2], bidirectional=True, zoneout=0.3, recurrent_dropout=0.4,
        backend=backend,
    )  # fmt: skip
    x, lengths = random(5, 3, 3), [5, 3, 1]
    packed = pack_padded_sequence(x, lengths)
    torch.manual_seed(5)
    y, state = layer(packed)
    torch.manual_seed(5)
    wanted, last = layer(x, lengths=lengths)
    found = torch.nn.utils.rnn.pad_packed_sequence(y)[0]
    agree([found, *flat(state)], [wanted, *flat(last)], [x, *layer.parameters()])


def test_packed_with_zoneout_in_eval() -> None:
    layer = build(cells.GRU(), 3, 4, bidirectional=True, zoneout=0.3).eval()
    rows = [random(n, 3) for n in (2, 4, 1)]
    out, final = layer(pack_sequence(rows, enforce_sorted=False))
    x = torch.nn.utils.rnn.pad_sequence(rows)
    mean = torch.full((2, 4, 3, 4), 0.3, dtype=torch.float64)
    y, last, _ = plain(layer, gru, x, lengths=[2, 4, 1], zones=[(mean,)])
    agree((packed_rows(out, 3), final), ([y[:2, 0], y[:4, 1], y[:1, 2]], last), rows)


@pytest.mark.parametrize("kind", ["elman", "lstm"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("steps", [1, 6, 7, 8])
def test_dilation(kind: str, directions: int, steps: int) -> None:
    cell, step = KINDS[kind]
    layer = build(
        cell, 2, 3, num_layers=3, bidirectional=directions == 2, dilation=[3, 1, 2],
        learn_initial=True,
    )  # fmt: skip
    x, reset = random(steps, 3, 2), torch.rand(steps, 3) < 0.2
    lengths = [steps, 0, (steps + 1) // 2]
    leaves, dilations = [x, *layer.parameters()], [3, 1, 2]
    agree(layer(x), plain(layer, step, x, dilations=dilations)[:2], leaves)
    for options in ({"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}):
        y, last, traces = plain(layer, step, x, dilations=dilations, **options)
        agree(layer(x, **options), (y, last), leaves)
        agree([list(part.values()) for part in layer.trace(x, **options)], traces)


def test_dilation_takes_no_state() -> None:
    layer = build(cells.GRU(), 2, 3, dilation=2)
    with pytest.raises(OptionError, match="a dilated layer holds no old states.*or use dilation=1"):
        layer(random(4, 1, 2), start(layer, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_trace_holds_every_state_of_every_layer(kind: str) -> None:
    cell, step = KINDS[kind]
    layer = build(cell, 3, [4, 2], bidirectional=True, merge="mean")
    x = random(5, 4, 3)
    expected = plain(layer, step, x, lengths=[4, 0, 5, 2], merge=lambda v: (v[0] + v[1]) / 2)[2]
    found = layer.trace(x, lengths=[4, 0, 5, 2])
    assert [tuple(part) for part in found] == [cell.state_names] * 2
    agree([list(part.values()) for part in found], expected, [x, *layer.parameters()])


def random_case(seed: int, kind: str, T: int, B: int, d: int, two: bool, layers: int) -> None:
    torch.manual_seed(seed)
    cell, step = KINDS[kind]
    sizes = torch.randint(1, 5, (layers,)).tolist()
    layer = build(cell, 2, sizes, bidirectional=two, dilation=d, learn_initial=seed % 2 == 0)
    x, lengths = random(T, B, 2), torch.randint(0, T + 1, (B,))
    reset = torch.rand(T, B) < 0.3
    y, last, _ = plain(layer, step, x, lengths=lengths, reset=reset, dilations=[d] * layers)
    found = layer(x, lengths=lengths, reset=reset)
    agree(found, (y, last), [x, *layer.parameters()])
    rows = [b for b in range(B) if lengths[b] > 0]
    for b in rows:
        n = int(lengths[b])
        agree(layer(x[:n, b], reset=reset[:n, b])[0], y[:n, b])
    if rows:
        packed = pack_sequence([x[: lengths[b], b] for b in rows], enforce_sorted=False)
        out, final = layer(packed, reset=reset[: int(lengths.max()), rows])
        expected = ([y[: lengths[b], b] for b in rows], [[v[:, rows] for v in s] for s in last])
        agree((packed_rows(out, len(rows)), final), expected)


CASES: dict[str, Any] = {
    "seed": st.integers(0, 10**6), "kind": st.sampled_from(sorted(KINDS)), "T": st.integers(1, 7),
    "B": st.integers(1, 4), "d": st.integers(1, 3), "two": st.booleans(),
    "layers": st.integers(1, 2),
}  # fmt: skip


@settings(max_examples=25)
@given(**CASES)
def test_padded_is_packed_is_alone_is_plain(**case: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        random_case(**case)


@pytest.mark.soak
@settings(max_examples=3000)
@given(**CASES)
def test_padded_is_packed_is_alone_is_plain_long(**case: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        random_case(**case)


def test_no_backend_hides_from_lengths() -> None:
    layer = build(cells.Elman(), 3, 4, backend="torch")
    x = random(5, 4, 3)
    agree(layer(x, lengths=[4, 0, 5, 2]), plain(layer, elman, x, lengths=[4, 0, 5, 2])[:2], [x])


class Counting(TorchFunctionMode):
    """Counts the numbers in all that torch's functions give."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for v in found if isinstance(found, tuple | list) else (found,):
            self.numbers += v.numel() if isinstance(v, Tensor) else 0
        return found


def test_work_grows_with_the_steps_alone() -> None:
    layer = build(cells.Elman(), 1, 1, backend="reference", bidirectional=True)

    def numbers(T: int) -> int:
        x, reset = random(T, 40, 1), torch.rand(T, 40) < 0.3
        with Counting() as counted:
            layer(x, lengths=[T] * 40, reset=reset)
        return counted.numbers

    assert numbers(80) < 2.1 * numbers(40)
