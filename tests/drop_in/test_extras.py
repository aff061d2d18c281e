"""What the drop-ins offer beyond torch.nn: lengths, resets, pairs of sizes, gates, backends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import throughtime
from tests.drop_in.pairs import KINDS, Case, tensors
from throughtime.errors import BackendError, OptionError, ShapeError

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
BACKENDS = ("auto", "reference")
T, B, I, H = 7, 4, 3, 5


def build(kind: str, backend: str = "auto", **options: Any) -> Any:
    return getattr(throughtime, kind)(I, H, dtype=torch.float64, backend=backend, **options)


def state(kind: str, rows: int = B, layers: int = 4) -> Any:
    h, c = torch.randn(2, layers, rows, H, dtype=torch.float64).unbind()
    return (h, c) if kind == "LSTM" else h


def part(hx: Any, rows: slice) -> Any:
    return tuple(v[:, rows] for v in hx) if isinstance(hx, tuple) else hx[:, rows]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_rows_alone(kind: str, bidirectional: bool, backend: str) -> None:
    """Each row with its length is that row cut and run alone; length 0 keeps its state."""
    layer = build(kind, backend, num_layers=2, bidirectional=bidirectional)
    lengths = [3, 0, T, 1]
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx = state(kind, layers=4 if bidirectional else 2)
    y, final = layer(x, hx, lengths=torch.tensor(lengths))
    for b, n in enumerate(lengths):
        row = slice(b, b + 1)
        assert torch.equal(y[n:, row], torch.zeros_like(y[n:, row]))
        alone = layer(x[:n, row], part(hx, row)) if n else (y[:0, row], part(hx, row))
        torch.testing.assert_close(
            tensors((y[:n, row], part(final, row))), tensors(alone), **TOLERANCE
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_packing(kind: str, backend: str) -> None:
    """Values and gradients equal those of torch.nn with a PackedSequence."""
    case = Case(kind, "batch_first", True, {"num_layers": 2, "bidirectional": True})
    theirs, ours = case.pair(backend)
    lengths = torch.tensor([2, 4, 3])
    x = torch.randn(3, 4, I, dtype=torch.float64, requires_grad=True)
    hx = state(kind, rows=3)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, expected = theirs(packed, hx)
    results = [
        tensors((pad_packed_sequence(y, batch_first=True)[0], expected)),
        tensors(ours(x, hx, lengths=lengths)),
    ]
    torch.testing.assert_close(results[1], results[0], **TOLERANCE)
    d_results = [torch.randn_like(v) for v in results[0]]
    gradients = [
        torch.autograd.grad(found, [x, *layer.parameters()], d_results)
        for layer, found in zip((theirs, ours), results, strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_makes_two_sequences(kind: str, backend: str) -> None:
    layer = build(kind, backend, bidirectional=True, batch_first=True)
    x, hx = torch.randn(B, T, I, dtype=torch.float64), state(kind, layers=2)
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, 3] = True
    y, final = layer(x, hx, reset=reset)
    zero = tuple(torch.zeros_like(v) for v in hx) if isinstance(hx, tuple) else torch.zeros_like(hx)
    before = layer(x[:, :3], mixed(hx, zero))
    behind = layer(x[:, 3:], mixed(zero, hx))
    torch.testing.assert_close(y, torch.cat((before[0], behind[0]), 1), **TOLERANCE)
    torch.testing.assert_close(tensors(final), tensors(behind[1]), **TOLERANCE)


def mixed(forward: Any, backward: Any) -> Any:
    """The forward direction's state of one, the backward direction's of the other."""
    found = tuple(
        torch.stack((f[0], b[1])) for f, b in zip(tensors(forward), tensors(backward), strict=True)
    )
    return found if isinstance(forward, tuple) else found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_resets_in_a_packed_batch(kind: str) -> None:
    layer = build(kind, num_layers=2)
    rows = [torch.randn(n, I, dtype=torch.float64) for n in (2, 5, 3)]
    reset = torch.rand(5, 3) < 0.4
    y, final = layer(pack_sequence(rows, enforce_sorted=False), reset=reset)
    padded = nn.utils.rnn.pad_sequence(rows)
    expected = layer(padded, lengths=torch.tensor([2, 5, 3]), reset=reset)
    found = (pad_packed_sequence(y)[0], final)
    torch.testing.assert_close(tensors(found), tensors(expected), **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_time_steps_and_no_rows(kind: str, backend: str) -> None:
    layer = build(kind, backend, num_layers=2, bidirectional=True)
    hx = state(kind)
    y, final = layer(torch.zeros(0, B, I).double(), hx)
    assert y.shape == (0, B, 2 * H)
    assert all(torch.equal(a, b) for a, b in zip(tensors(final), tensors(hx), strict=True))
    y, final = layer(torch.zeros(T, 0, I).double())
    assert y.shape == (T, 0, 2 * H)
    assert all(v.shape == (4, 0, H) for v in tensors(final))


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_resets_that_do_not_fit(kind: str) -> None:
    layer, x = build(kind), torch.randn(T, B, I, dtype=torch.float64)
    with pytest.raises(ShapeError, match="lengths must be from 0 to 7, the steps of x, got 8"):
        layer(x, lengths=[1, 2, 3, 8])
    with pytest.raises(ShapeError, match=r"lengths must be \(4,\), one for each row, got \(2,\)"):
        layer(x, lengths=[1, 2])
    with pytest.raises(ShapeError, match=r"reset must be \(7, 4\) as x, got \(4, 7\)"):
        layer(x, reset=torch.zeros(B, T, dtype=torch.bool))
    with pytest.raises(OptionError, match="a PackedSequence holds its own lengths"):
        layer(pack_sequence([x[:, 0]]), lengths=[T])


def test_an_equal_pair_needs_no_projection() -> None:
    torch.manual_seed(1)
    ours = throughtime.LSTM(I, (H, H), 2, backend="torch")
    torch.manual_seed(1)
    theirs = nn.LSTM(I, H, 2)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(T, B, I)
    assert torch.equal(ours(x)[0], theirs(x)[0])


def test_a_shorter_short_memory_is_torchs_projection() -> None:
    torch.manual_seed(1)
    ours = throughtime.LSTM(I, (H, 2), bidirectional=True, dtype=torch.float64)
    torch.manual_seed(1)
    theirs = nn.LSTM(I, H, bidirectional=True, proj_size=2, dtype=torch.float64)
    assert repr(ours) == repr(theirs)
    assert (ours.hidden_size, ours.proj_size) == (H, 2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_short_memory_may_exceed_long(bidirectional: bool) -> None:
    """torch.nn refuses it; the kernel and the reference agree on it, and it takes lengths."""
    with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
        nn.LSTM(I, H, proj_size=8)
    layer = throughtime.LSTM(
        I, (H, 8), 2, bidirectional=bidirectional, dtype=torch.float64, backend="auto"
    )
    judge = throughtime.LSTM(
        I, (H, 8), 2, bidirectional=bidirectional, dtype=torch.float64, backend="reference"
    )
    judge.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    found, expected = layer(x), judge(x)
    torch.testing.assert_close(tensors(found), tensors(expected), **TOLERANCE)
    assert found[0].shape == (T, B, 8 * layer.directions)
    assert [v.shape[-1] for v in found[1]] == [8, H]
    assert repr(layer).startswith("LSTM(3, (5, 8), num_layers=2")
    lengths = torch.tensor([T, 0, 2, 5])
    torch.testing.assert_close(
        tensors(layer(x, lengths=lengths)), tensors(judge(x, lengths=lengths)), **TOLERANCE
    )


def test_gates_by_name() -> None:
    layer = build("LSTM", num_layers=2, bidirectional=True)
    layer.gate("f", 1, reverse=True).bias = 3.0
    assert torch.equal(layer.bias_ih_l1_reverse[H : 2 * H], torch.full((H,), 3.0).double())
    gru = build("GRU")
    assert torch.equal(gru.gate("n").weight_hh, gru.weight_hh_l0[-H:])
    with pytest.raises(OptionError, match="gate must be one of r, z, n, got 'f'"):
        build("GRU").gate("f")


@pytest.mark.parametrize("kind", KINDS)
def test_explain_and_named_backends(kind: str) -> None:
    layer, x = build(kind, "torch"), torch.randn(T, B, I, dtype=torch.float64)
    assert build(kind).explain() == "layer 0: cpu"
    assert layer.explain() == "layer 0: torch"
    assert build(kind, "reference", num_layers=2).explain().splitlines()[1] == "layer 1: reference"
    assert torch.equal(layer(x)[0], getattr(nn, kind).forward(from_ours(kind, layer), x)[0])
    with pytest.raises(BackendError, match="backend 'torch' cannot run .* does not offer resets"):
        layer(x, reset=torch.zeros(T, B, dtype=torch.bool))
    with pytest.raises(BackendError, match="backend 'torch' cannot run .* no rule for vmap"):
        torch.func.vmap(lambda v: layer(v)[0])(x.unsqueeze(0))


def from_ours(kind: str, layer: nn.Module) -> nn.Module:
    theirs = getattr(nn, kind)(I, H, dtype=torch.float64)
    theirs.load_state_dict(layer.state_dict())
    return theirs


# The compiler makes an instance of every autograd function that it meets.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_whole(kind: str) -> None:
    """torch.compile(fullgraph=True) refuses torch.nn's layers and takes ours."""
    layer = build(kind, num_layers=2, bidirectional=True, batch_first=True)
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(B, T, I, dtype=torch.float64)
    lengths = torch.tensor([T, 1, 0, 3])
    hx = state(kind)
    for given in ({}, {"lengths": lengths}):
        found, expected = tensors(step(x, hx, **given)), tensors(layer(x, hx, **given))
        torch.testing.assert_close(found, expected, **TOLERANCE)
        gradients = [
            torch.autograd.grad(v[0].square().sum(), list(layer.parameters()))
            for v in (found, expected)
        ]
        torch.testing.assert_close(gradients[0], gradients[1], **TOLERANCE)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_streams_and_windows_take_torchs_states(kind: str) -> None:
    layer = build(kind, num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx = state(kind, layers=2)
    y, final = layer(x, hx)
    found = list(layer.windows(x, 3, hx))
    torch.testing.assert_close(torch.cat([w.outputs for w in found]), y, **TOLERANCE)
    torch.testing.assert_close(tensors(found[-1].state), tensors(final), **TOLERANCE)
    stream = layer.stream(batch=B)
    steps = torch.stack([stream(v) for v in x])
    torch.testing.assert_close(steps, layer(x)[0], **TOLERANCE)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_traces_end_in_the_final_state(kind: str, first: bool) -> None:
    layer = build(kind, num_layers=2, batch_first=first)
    x = torch.randn(B, T, I, dtype=torch.float64)
    x = x if first else x.transpose(0, 1)
    y, final = layer(x)
    found: list[dict[str, Tensor]] = list(layer.trace(x))
    torch.testing.assert_close(found[1]["h"].flatten(2), y, **TOLERANCE)
    for i, name in enumerate(layer.cell.state_names):
        last = torch.stack([(v[name][:, -1] if first else v[name][-1]).squeeze(1) for v in found])
        torch.testing.assert_close(last, tensors(final)[i], **TOLERANCE)
