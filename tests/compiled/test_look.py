"""Machine code reads no tensor that is not what its layer's sizes ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.tolerance import TOLERANCE
from throughtime import GRU, LSTM, Recurrent, Stream, cells
from throughtime.errors import ShapeError
from throughtime.scan.operator import scan_backward

T, B, I, H = 6, 3, 4, 8
CLOSE = TOLERANCE[torch.float32]


def _wide(layer: nn.Module, name: str) -> None:
    value = getattr(layer, name)
    value.data = torch.zeros(*value.shape[:-1], 2 * value.shape[-1])


def _small(layer: nn.Module, name: str) -> None:
    getattr(layer, name).data = torch.zeros([1] * getattr(layer, name).dim())


def _turned(layer: nn.Module, name: str) -> None:
    value = getattr(layer, name)
    value.data = value.data.t() if value.dim() == 2 else value.data.view(-1, 1)


CHANGES = {"wide": _wide, "small": _small, "turned": _turned}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {}, "bidirectional": {"bidirectional": True}, "segments": {"checkpoint_every": 2},
    "initial": {"learn_initial": True},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_a_weight_of_another_shape_is_named(name: str, change: str, form: str) -> None:
    layer = Recurrent(cells.LSTM(), I, H, backend="cpu", **FORMS[form])
    wanted = tuple(getattr(layer, f"{name}_l0").shape)
    CHANGES[change](layer, f"{name}_l0")
    got = tuple(getattr(layer, f"{name}_l0").shape)
    text = f"{name} must be {wanted} for input_size {I} and hidden_size {H}, got {got};"
    with pytest.raises(ShapeError, match=re.escape(text)):
        layer(torch.randn(T, B, I))
    with torch.no_grad(), pytest.raises(ShapeError, match=re.escape(text)):
        layer(torch.randn(T, B, I))


@pytest.mark.parametrize("cell", [cells.LSTMPeephole(), cells.LSTMProjected(3), cells.MGU()])
def test_vectors_and_matrices_of_a_cell(cell: cells.Cell) -> None:
    for name, value in Recurrent(cell, I, H).named_parameters():
        layer = Recurrent(cell, I, H, backend="cpu")
        getattr(layer, name).data = torch.zeros(*[v + 1 for v in value.shape])
        with pytest.raises(ShapeError, match=re.escape(f"must be {tuple(value.shape)} for")):
            layer(torch.randn(T, B, I))


class Twice(cells.Cell):
    """One matrix multiplied twice in a step."""

    gates, state = ("g",), ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, ...]:
        """h' = tanh(a + U tanh(U h))"""
        return (torch.tanh(a.g + U.g @ torch.tanh(U.g @ s.h)),)


@pytest.mark.parametrize("shape", [(2, 2), (1,), (H + 1, H), (2 * H, H)])
def test_a_matrix_that_is_multiplied_twice(shape: tuple[int, ...]) -> None:
    layer = Recurrent(Twice(), I, H, backend="cpu")
    layer.weight_hh_l0.data = torch.zeros(shape)
    with pytest.raises(ShapeError, match=r"weight_hh must be \(8, 8\) for"):
        layer(torch.randn(T, B, I))


def test_weights_of_functional_call_and_of_another_hidden_size() -> None:
    layer = GRU(I, H, backend="cpu")
    with pytest.raises(ShapeError, match=r"weight_hh must be \(24, 8\)"):
        torch.func.functional_call(
            layer, {"weight_hh_l0": torch.zeros(2, 2)}, (torch.randn(T, B, I),)
        )
    layer.hidden_sizes = (4000,)
    with pytest.raises(ShapeError, match=r"weight_ih must be \(12000, 4\) .* got \(24, 4\)"):
        layer(torch.randn(T, B, I))


@pytest.mark.parametrize("left", [0, 4])
@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l0"])
def test_memory_that_was_given_back_is_named(name: str, left: int) -> None:
    layer = GRU(I, H, backend="cpu")
    getattr(layer, name).untyped_storage().resize_(left)
    with pytest.raises(ShapeError, match=f"its memory of {left} bytes is too small"):
        layer(torch.randn(T, B, I))


def test_memory_of_x_and_of_the_state() -> None:
    layer = Recurrent(cells.GRU(), I, H, backend="cpu")
    x, h = torch.randn(T, B, I), torch.randn(1, B, H)
    h.untyped_storage().resize_(0)
    with pytest.raises(ShapeError, match=r"state h has \(1, 3, 8\) numbers, for which its memory"):
        layer(x, ((h,),))
    x.untyped_storage().resize_(4)
    with pytest.raises(ShapeError, match=r"x has \(6, 3, 4\) numbers, for which its memory"):
        layer(x)


@pytest.mark.parametrize("left", [0, 1, 2])
@pytest.mark.parametrize("name", ["x", "h", "weight_hh_l0"])
def test_a_view_behind_the_end_of_its_storage_is_named(name: str, left: int) -> None:
    """As large as the view, and larger: what is left lies before its first number."""
    layer = GRU(I, H)
    wide = torch.zeros(100_000, device="cpu")
    values = {"x": torch.randn(T, B, I), "h": torch.randn(1, B, H), "weight_hh_l0": None}
    shape = (3 * H, H) if name == "weight_hh_l0" else tuple(values[name].shape)  # type: ignore[union-attr]
    view = wide[50_000 : 50_000 + math.prod(shape)].view(shape)
    if name == "weight_hh_l0":
        layer.weight_hh_l0 = nn.Parameter(view)
    else:
        values[name] = view
    expected = layer(values["x"], values["h"])
    expected[0].sum().backward()
    assert_close(layer(values["x"], values["h"]), expected)
    y, _ = layer(values["x"], values["h"])
    wide.untyped_storage().resize_(left * view.nbytes)
    cut = "is too small|are out of bounds for storage"  # ours, and torch's own for a state
    for records in (True, False):
        with torch.set_grad_enabled(records), pytest.raises((ShapeError, RuntimeError), match=cut):
            layer(values["x"], values["h"])
    with pytest.raises((ShapeError, RuntimeError), match=cut):
        y.sum().backward()


def test_an_initial_state_of_another_width_is_named() -> None:
    layer = Recurrent(cells.GRU(), I, H, backend="cpu", learn_initial=True)
    layer.initial_h_l0.data = torch.zeros(1)
    reset = torch.ones(T, B, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"initial h must be \(1, 8\) in this call, got \(1, 1\)"):
        layer(torch.randn(T, B, I), reset=reset)


def test_a_stream_looks_before_it_packs() -> None:
    layer = Recurrent(cells.GRU(), I, H, return_state=False)
    layer.weight_ih_l0.data = torch.randn(3 * H, 4000)
    with pytest.raises(ShapeError, match=r"weight_ih must be \(24, 4\)"):
        layer.stream()(torch.randn(I))
    model = nn.Sequential(Recurrent(cells.GRU(), I, H, return_state=False), nn.Linear(H, 5))
    model[1].bias.data = torch.randn(1)
    with pytest.raises(ShapeError, match=r"bias must be \(5,\) in this call, got \(1,\)"):
        Stream(model)(torch.randn(I))


def _negative(v: Tensor) -> Tensor:
    """The numbers of v, each written as what is to be negated."""
    found = torch.complex(torch.zeros_like(v), -v).conj().imag
    assert found.is_neg()
    return found


@pytest.mark.parametrize("what", ["x", "state", "weight", "gradient"])
def test_views_that_negate_are_read_with_their_sign(what: str) -> None:
    layer, x, state = LSTM(I, H, backend="cpu"), torch.randn(T, B, I), torch.randn(2, 1, B, H)
    seed = torch.randn(T, B, H)

    def run(x: Tensor, state: Tensor, seed: Tensor) -> list[Tensor]:
        y, (h, c) = layer(x, (state[0], state[1]))
        return [y, h, c, *torch.autograd.grad(y, list(layer.parameters()), seed)]

    expected = run(x, state, seed)
    if what == "weight":
        layer.weight_hh_l0.data = _negative(layer.weight_hh_l0.data)
    see = {"x": (_negative(x), state, seed), "state": (x, _negative(state), seed),
           "weight": (x, state, seed), "gradient": (x, state, _negative(seed))}  # fmt: skip
    assert_close(run(*see[what]), expected, rtol=0, atol=0)


def test_a_gradient_of_zeros_without_memory() -> None:
    layer = GRU(I, H, backend="cpu")
    y = layer(torch.randn(T, B, I))[0]
    zeros = torch._efficientzerotensor(y.shape)
    found = torch.autograd.grad(y, list(layer.parameters()), zeros)
    assert not any(v.any() for v in found)


def _half(layer: nn.Module, x: Tensor) -> None:
    layer.half()


def _x_half(layer: nn.Module, x: Tensor) -> None:
    x.data = x.data.half()


def _x_shorter(layer: nn.Module, x: Tensor) -> None:
    x.data = x.data[:2]


def _x_longer(layer: nn.Module, x: Tensor) -> None:
    x.data = torch.randn(5 * T, B, I)


def _x_gone(layer: nn.Module, x: Tensor) -> None:
    x.untyped_storage().resize_(0)


def _small_weight(layer: nn.Module, x: Tensor) -> None:
    _small(layer, "weight_hh_l0")


def _double(layer: nn.Module, x: Tensor) -> None:
    layer.double()
    x.data = x.data.double()


MEANWHILE: dict[str, tuple[Callable[[nn.Module, Tensor], None], str]] = {
    "layer.half": (_half, "weight_ih must be torch.float32 on cpu as the rest of its call"),
    "x half": (_x_half, "x must be torch.float32 or torch.float64 on cpu, got torch.float16"),
    "x shorter": (_x_shorter, "y must be (2, 3, 1, 8) in this call, got (6, 3, 1, 8)"),
    "x longer": (_x_longer, "y must be (30, 3, 1, 8) in this call, got (6, 3, 1, 8)"),
    "x gone": (_x_gone, "x has (6, 3, 4) numbers, for which its memory of 0 bytes"),
    "weight": (_small_weight, "weight_hh must be (24, 8) for"),
    "all double": (_double, "must be torch.float64 on cpu as the rest of its call"),
}


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_what_changed_since_the_forward_pass_is_named(meanwhile: str, before: int) -> None:
    change, text = MEANWHILE[meanwhile]
    layer, x = GRU(I, H, backend="cpu"), torch.randn(T, B, I)
    for _ in range(before):  # then torch's node records, whose errors are RuntimeErrors
        layer(x)[0].sum().backward()
    y = layer(x)[0]
    change(layer, x)
    with pytest.raises((ShapeError, TypeError, RuntimeError), match=re.escape(text)):
        y.sum().backward()


@pytest.mark.parametrize("every", [None, 2])
def test_hooks_that_keep_another_dtype(every: int | None) -> None:
    layer = Recurrent(cells.GRU(), I, H, backend="cpu", checkpoint_every=every)
    halves = torch.autograd.graph.saved_tensors_hooks(
        lambda v: v.half() if v.is_floating_point() else v, lambda v: v
    )
    with halves:
        y = layer(torch.randn(T, B, I))[0]
    with pytest.raises(TypeError, match="must be torch.float32"):
        y.sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("what", ["lengths", "starts", "reset"])
def test_what_a_caller_writes_over_before_backward(what: str, backend: str) -> None:
    """Lengths, starts and resets in a buffer of NumPy's that is used again."""
    layer = Recurrent(cells.GRU(), I, H, backend=backend)
    buffer = np.array([6, 2, 4]) if what != "reset" else np.arange(T * B).reshape(T, B) % 4 == 0
    x = torch.randn(T, B, I, requires_grad=True)

    def gradient(given: Any, after: Callable[[], None] = lambda: None) -> Tensor:
        y = layer(x, **{what: given})[0]
        after()
        return torch.autograd.grad(y.square().sum(), x)[0]

    expected = gradient(torch.from_numpy(buffer.copy()))
    found = gradient(torch.from_numpy(buffer), lambda: buffer.fill(1))
    assert_close(found, expected, rtol=0, atol=0)


def test_batch_sizes_written_over_before_backward() -> None:
    layer, sizes = GRU(I, H, backend="cpu"), np.array([3, 2, 1])
    data = torch.randn(6, I, requires_grad=True)

    def gradient(after: Callable[[], None]) -> Tensor:
        packed = nn.utils.rnn.PackedSequence(data, torch.from_numpy(sizes))
        y = layer(packed)[0].data
        after()
        return torch.autograd.grad(y.square().sum(), data)[0]

    expected = gradient(lambda: None)
    assert_close(gradient(lambda: sizes.fill(600)), expected, rtol=0, atol=0)


BROKEN = {
    "too few rows": ([200, 200], "must add up to the 3 lines of its data, got 400;"),
    "too many rows": ([1, 1], "must add up to the 3 lines of its data, got 2;"),
    "growing": ([1, 2], "must be positive and never grow, got 2 at step 1 after 1;"),
    "negative": ([4, -1], "must be positive and never grow, got -1 at step 1 after 4;"),
    "zero": ([3, 0], "must be positive and never grow, got 0 at step 1 after 3;"),
    "zero at first": ([0, 3], "must be positive and never grow, got 0 at step 0;"),
    "none": ([], "must have a step, got none;"),
}


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("kind", BROKEN)
def test_batch_sizes_that_do_not_fit_are_named(kind: str, backend: str) -> None:
    sizes, text = BROKEN[kind]
    packed = nn.utils.rnn.PackedSequence(torch.randn(3, I), torch.tensor(sizes, dtype=torch.int64))
    for layer in (GRU(I, H, backend=backend), Recurrent(cells.GRU(), I, H, backend=backend)):
        with pytest.raises(ShapeError, match=re.escape(f"batch_sizes of a PackedSequence {text}")):
            layer(packed)


def test_batch_sizes_of_another_kind_are_named() -> None:
    sizes = torch.tensor([2, 1], dtype=torch.int32)
    packed = nn.utils.rnn.PackedSequence(torch.randn(3, I), sizes)
    with pytest.raises(TypeError, match=r"batch_sizes .* must be \(T,\) of torch.int64 on cpu"):
        GRU(I, H, backend="cpu")(packed)


def test_a_slice_of_a_larger_tensor_is_a_weight() -> None:
    """As of a hypernetwork: contiguous, in a storage that is larger than it."""
    layer, x = GRU(I, H, backend="cpu"), torch.randn(T, B, I)
    flat = torch.cat([v.detach().flatten() for v in layer.parameters()]).requires_grad_()
    parts = flat.split([v.numel() for v in layer.parameters()])
    pairs = zip(layer.named_parameters(), parts, strict=True)
    weights = {name: part.view(v.shape) for (name, v), part in pairs}
    y = torch.func.functional_call(layer, weights, (x,))[0]
    assert_close(y, layer(x)[0], rtol=0, atol=0)
    found = torch.autograd.grad(y.sum(), flat)[0]
    expected = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
    assert_close(found, torch.cat([v.flatten() for v in expected]), rtol=0, atol=0)


def test_the_operator_refuses_a_gradient_of_another_shape() -> None:
    layer, x = Recurrent(cells.GRU(), I, H, backend="cpu"), torch.randn(T, B, I)
    y = layer(x)[0].unsqueeze(2)
    weights = list(layer.parameters())
    form, tensors = [H, 1, 1, 0, 0, 0, 0, 2], [x, *[None] * 5, *weights]
    with torch.no_grad(), pytest.raises(ShapeError, match=r"a gradient of a result must be"):
        scan_backward(
            cells.GRU().key, "cpu", form, [True] * len(tensors), tensors,
            [y.detach(), torch.zeros(1)], [torch.zeros(1, B, 1, H), None],
        )  # fmt: skip


def _shrunk(bytes: int) -> Callable[[Tensor], Tensor]:
    def change(v: Tensor) -> Tensor:
        v = v.clone()
        v.untyped_storage().resize_(bytes)
        return v

    return change


HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "given back": _shrunk(0), "shorter memory": _shrunk(8), "none": lambda v: v.new_empty(0),
    "int": lambda v: v.int(), "elsewhere": lambda v: v.to("meta"),
    "flat": lambda v: v.flatten()[1:],
    "many": lambda v: v.expand(700, *v.shape),
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "masks": ({"zoneout": 0.3, "recurrent_dropout": 0.2}, {}),
    "lengths": ({"bidirectional": True}, {"lengths": [6, 2, 4]}),
    "resets": ({"learn_initial": True, "clip_gradient": 1.0}, {"reset": torch.ones(T, B) > 0}),
    "segments": ({"checkpoint_every": 2}, {}),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_hooks_make_of_a_saved_tensor(kind: str, hook: str) -> None:
    """One of all that is saved comes back otherwise: an error, or the right gradient."""
    options, given = KINDS[kind]
    layer = Recurrent(cells.GRUD(), I, H, backend="cpu", **options)
    x = torch.randn(T, B, I)
    widths = {n: layer.cell.width(w, H) for n, w in layer.cell.inputs.items()}
    inputs = {n: torch.rand(T, B, w) for n, w in widths.items()}

    def gradients(number: int) -> tuple[int, tuple[Tensor, ...]]:
        torch.manual_seed(1)
        places: list[Tensor] = []

        def pack(v: Tensor) -> int:
            places.append(v)
            return len(places) - 1

        def unpack(i: int) -> Tensor:
            return HOOKS[hook](places[i]) if i == number else places[i]

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = layer(x, inputs=inputs, **given)[0]
        found = torch.autograd.grad(y.sum(), list(layer.parameters()), allow_unused=True)
        return len(places), tuple(v for v in found if v is not None)

    count, expected = gradients(-1)
    for i in range(count):
        try:
            found = gradients(i)[1]
        except (ValueError, TypeError, RuntimeError, IndexError):
            continue
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
