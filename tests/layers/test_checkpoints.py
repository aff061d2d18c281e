"""checkpoint_every: values, gradients and second derivatives of a layer without it, less kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close

from tests.layers.own import Decaying
from throughtime import Cell, Recurrent, cells
from throughtime.backends import BACKENDS, OPAQUE
from throughtime.backends.call import Call, Result
from throughtime.errors import BackendError, OptionError
from throughtime.scan import scan
from throughtime.scan.segments import scan_in_segments

T, B, I, H = 11, 4, 3, 5
DOUBLE = {"dtype": torch.float64}
CELLS: list[Cell] = [cells.LSTM(), cells.SLSTM(), Decaying()]
COMPILED = [*CELLS, cells.GRUD(), cells.GRUResetBefore(), cells.LSTMProjected(3)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"bidirectional": True},
    "sum": {"bidirectional": True, "merge": "sum", "num_layers": 2, "dropout": 0.3},
    "learn_initial": {"learn_initial": True, "bidirectional": True},
    "zoneout": {"zoneout": 0.3, "bidirectional": True},
    "masks": {"recurrent_dropout": 0.4, "weight_dropout": 0.3, "bidirectional": True},
    "dilation": {"dilation": 2},
    "no_bias": {"bias": False},
}
GIVEN: dict[str, dict[str, Any]] = {
    "all": {},
    "lengths": {"lengths": [11, 0, 5, 1]},
    "reset": {"reset": torch.arange(T * B).view(T, B) % 5 == 2},
    "both": {"lengths": [3, 11, 0, 9], "reset": torch.arange(T * B).view(T, B) % 3 == 1},
}


def pair(cell: Cell, every: int, **options: Any) -> tuple[Recurrent, Recurrent]:
    """A layer without checkpoints and one with, of the same weights."""
    torch.manual_seed(2)
    plain = Recurrent(cell, I, H, **options)
    other = Recurrent(cell, I, H, checkpoint_every=every, **options)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.normal_(0, 0.5)
    other.load_state_dict(plain.state_dict())
    return plain, other


def found(layer: Recurrent, x: Any, **given: Any) -> list[Tensor]:
    """Results and gradients, all masks drawn from one seed."""
    torch.manual_seed(5)
    leaves = [x.data if isinstance(x, torch.nn.utils.rnn.PackedSequence) else x]
    leaves += [v for v in (given.get("inputs") or {}).values()] + list(layer.parameters())
    leaves += [v for part in given.get("state") or () for v in part]
    y, state = layer(x, **given)
    y = y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y
    results = [y, *(v for part in state for v in part)]
    generator = torch.Generator().manual_seed(6)
    reached = [v for v in results if v.requires_grad]
    weights = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in reached]
    return results + list(torch.autograd.grad(reached, leaves, weights, materialize_grads=True))


def direct(cell: Cell) -> dict[str, Tensor] | None:
    sizes = {n: cell.width(w, H) for n, w in cell.inputs.items()}
    made = {n: torch.rand(T, B, w, **DOUBLE).requires_grad_() for n, w in sizes.items()}
    return made or None


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_all_is_as_without(
    cell: Cell, backend: str, options: dict[str, Any], given: dict[str, Any]
) -> None:
    plain, other = pair(cell, 4, backend=backend, **options, **DOUBLE)
    x = torch.randn(T, B, I, **DOUBLE).requires_grad_()
    given = {**given, "inputs": direct(cell)}
    if "dilation" not in options:
        given["state"] = tuple(
            tuple(torch.randn_like(v).abs().requires_grad_() for v in part)
            for part in plain.initial_state(B)
        )
    try:
        expected = found(plain, x, **given)
    except BackendError:
        pytest.skip(f"{backend} does not take this call with or without checkpoints")
    assert_close(found(other, x, **given), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("every", [1, 2, 5, 11, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_number_of_steps(every: int, dtype: torch.dtype) -> None:
    plain, other = pair(cells.LSTM(), every, dtype=dtype, bidirectional=True)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6
    assert_close(found(other, x), found(plain, x), rtol=tolerance, atol=tolerance)


def long(cell: Cell, every: int, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Results and gradients of 300 steps on compiled code, with checkpoints and without."""
    plain, other = pair(cell, every, backend="cpu", **options)
    x = torch.randn(300, B, I, requires_grad=True)
    inputs = {n: torch.rand(300, B, cell.width(w, H)) for n, w in cell.inputs.items()}
    given = {n: v.requires_grad_() for n, v in inputs.items()} or None
    reset = torch.rand(300, B) < 0.02
    return tuple(found(m, x, inputs=given, reset=reset) for m in (other, plain))  # type: ignore[return-value]


@pytest.mark.parametrize("every", [1, 7, 17, 100])
@pytest.mark.parametrize(
    "cell", [*CELLS, cells.GRU(), cells.GRUD(), cells.GRUResetBefore()], ids=repr
)
def test_compiled_code_gives_the_same_bits(cell: Cell, every: int) -> None:
    """Sums over steps are one chain, through all segments as through the whole sequence."""
    ours, theirs = long(cell, every)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_backward_direction_and_where_sequences_start_to_a_millionth() -> None:
    ours, theirs = long(cells.LSTM(), 17, bidirectional=True, learn_initial=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_the_sequence_of_every_state() -> None:
    cell = cells.LSTM()
    x = torch.randn(T, B, I, **DOUBLE).requires_grad_()
    shapes = {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "bias_ih": (4 * H,)}
    weights = {n: torch.randn(s, **DOUBLE).requires_grad_() for n, s in shapes.items()}
    weights["bias_hh"] = torch.randn(4 * H, **DOUBLE).requires_grad_()
    lengths = torch.tensor([11, 0, 5, 1])
    call = Call(cell, H, x, (weights, weights), lengths=lengths, record=True)
    d_h, d_c = torch.randn(2, T, B, 2, H, **DOUBLE)

    def gradients(result: Result) -> list[Tensor]:
        h, c = result.sequences
        return [h, c, *torch.autograd.grad([h, c], [x, *weights.values()], [d_h, d_c])]

    ours = gradients(scan_in_segments(call, "cpu", 4))
    assert_close(ours, gradients(scan(call, "reference")), rtol=1e-10, atol=1e-11)


def test_a_packed_batch() -> None:
    plain, other = pair(cells.GRU(), 3, bidirectional=True, **DOUBLE)
    x = torch.randn(26, I, **DOUBLE).requires_grad_()
    sizes = torch.tensor([4, 4, 4, 3, 3, 2, 2, 2, 1, 1])
    packed = torch.nn.utils.rnn.PackedSequence(x, sizes)
    assert_close(found(other, packed), found(plain, packed), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_second_derivatives(backend: str) -> None:
    layer = pair(cells.GRU(), 2, backend=backend, bidirectional=True, **DOUBLE)[1]
    x = torch.randn(5, 2, I, **DOUBLE).requires_grad_()
    start = torch.randn(2, 2, H, **DOUBLE).requires_grad_()

    def outputs(x: Tensor, start: Tensor) -> Tensor:
        return layer(x, ((start,),))[0]

    assert torch.autograd.gradgradcheck(outputs, (x, start), fast_mode=True)


def test_backward_twice() -> None:
    layer = pair(cells.LSTM(), 3, **DOUBLE)[1]
    x = torch.randn(T, B, I, **DOUBLE).requires_grad_()
    y = layer(x)[0].sum()
    first = torch.autograd.grad(y, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y, x)[0])


def test_nothing_recorded_and_transforms_run_as_without() -> None:
    plain, other = pair(cells.LSTM(), 3, **DOUBLE)
    x = torch.randn(T, B, I, **DOUBLE)
    with torch.no_grad():
        assert torch.equal(other(x)[0], plain(x)[0])
    assert other(x[:0])[0].shape == (0, B, H)
    grads = [torch.func.grad(lambda x, layer=m: layer(x)[0].sum())(x) for m in (plain, other)]
    assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)


def kept_bytes(layer: Recurrent, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that live after a call beside its x and y: what was kept, and final states."""
    cpu, made = OPAQUE["cpu"], {}
    forward = cpu.forward

    def counted(call: Call, keep: bool, *where: Any) -> tuple[Result, list[Tensor]]:
        result, kept = forward(call, keep, *where)
        for v in (*kept, *result.final):
            made[StorageWeakRef(v.untyped_storage())] = v.untyped_storage().nbytes()
        return result, kept

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "forward", counted)
        patch.setattr(Recurrent, "_run_short", lambda *_: None)  # which goes past `forward`
        y = layer(x)
    live = sum(size for ref, size in made.items() if not ref.expired())
    assert y[0].requires_grad
    return live


def test_a_tenth_of_the_bytes_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """At k = sqrt(T): two states every k steps beside five values each step, and one segment."""
    steps, every = 400, 20
    plain, other = pair(cells.LSTM(), every, backend="cpu")
    x = torch.randn(steps, B, I, requires_grad=True)
    all_of_it = kept_bytes(plain, x, monkeypatch)
    one_segment = kept_bytes(plain, x[:every], monkeypatch)
    assert all_of_it > 4 * steps * B * H * x.element_size()
    assert kept_bytes(other, x, monkeypatch) + one_segment < 0.1 * all_of_it


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3"])
def test_a_number_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(
        OptionError, match=f"checkpoint_every must be a positive integer or None, got {wrong!r}"
    ):
        Recurrent(cells.LSTM(), I, H, checkpoint_every=wrong)


def test_it_is_in_the_layers_words() -> None:
    assert "checkpoint_every=4" in repr(Recurrent(cells.LSTM(), I, H, checkpoint_every=4))
    assert "checkpoint" not in repr(Recurrent(cells.LSTM(), I, H))


@pytest.mark.parametrize("directions", [1, 2])
def test_inside_a_checkpoint_of_torchs(directions: int) -> None:
    """Which lets what was saved be read once."""
    plain, other = pair(cells.LSTM(), 3, bidirectional=directions == 2)
    x = torch.randn(T, B, I, requires_grad=True)

    def gradients(layer: Recurrent, **how: Any) -> tuple[Tensor, ...]:
        y = torch.utils.checkpoint.checkpoint(lambda v: layer(v)[0], x, **how)
        return torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])

    found = gradients(other, use_reentrant=False)
    assert_close(found, gradients(plain, use_reentrant=False))
