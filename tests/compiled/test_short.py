"""The short way of plain calls: the same bits as the long way, and nothing stale."""

from __future__ import annotations

import contextlib
import copy
import pickle
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import throughtime
from tests.compiled.calls import long_way
from throughtime import torch_private
from throughtime.backends.cpu.stream.memory import PackedMatrix, Packs
from throughtime.cells import Cell, available
from throughtime.compiler.runtime import threads
from throughtime.compiler.trace import trace
from throughtime.errors import ShapeError
from throughtime.layers.drop_in.base import DropIn
from throughtime.scan import prepared as short
from throughtime.scan.prepared import ShortLayers

KINDS = ["RNN", "GRU", "LSTM"]
OPTIONS: list[dict[str, Any]] = [
    {}, {"bidirectional": True}, {"num_layers": 2}, {"batch_first": True}, {"bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dtype": torch.float64},
]  # fmt: skip


@contextmanager
def only_short() -> Iterator[None]:
    """Inside, a call that goes the long way fails."""

    def fail(*_: Any) -> None:
        raise AssertionError("went the long way")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DropIn, "_check_call", fail)
        yield


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for part in value for v in flat(part)]


def start_of(layer: Any, rows: int) -> Any:
    count = layer.num_layers * layer.directions
    state = tuple(torch.randn(count, rows, w, dtype=layer.weight_hh_l0.dtype)
                  for w in layer.widths[0])  # fmt: skip
    return state if layer.mode == "LSTM" else state[0]


def step(layer: Any, x: Tensor, state: Any) -> list[Tensor]:
    """Values, and gradients by everything that has one, of random weights of the results."""
    leaves = [x, *flat(state if state is not None else ()), *layer.parameters()]
    for v in leaves:
        v.requires_grad_()
    found = flat(layer(x, state))
    torch.manual_seed(3)
    loss = sum((v * torch.randn_like(v)).sum() for v in found)
    return [*found, *torch.autograd.grad(loss, leaves)]  # type: ignore[arg-type]


def same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for v, w in zip(found, wanted, strict=True):
        assert v.shape == w.shape and v.stride() == w.stride() and torch.equal(v, w)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_both_ways_give_the_same_bits(kind: str, options: dict[str, Any], given: bool) -> None:
    layer = getattr(throughtime, kind)(3, 5, **options)
    x = torch.randn(2, 4, 3, dtype=layer.weight_hh_l0.dtype)
    state = start_of(layer, 2 if layer.batch_first else 4) if given else None
    with long_way():
        wanted = step(layer, x, state)
    with only_short():
        found = step(layer, x, state)
        again = step(layer, x, state)
        with torch.no_grad():
            values = flat(layer(x, state))
    same(found, wanted)
    same(again, wanted)
    same(values, [v.detach() for v in wanted[: len(values)]])


def cell_of(name: str) -> Cell:
    kind: Any = available()[name]
    return kind(2) if name in ("LSTMProjected", "Skip") else kind()


FORMS: list[tuple[str, tuple[int, ...]]] = [
    ("one step", (1, 4, 3)), ("one row", (4, 1, 3)), ("unbatched", (4, 3)), ("one of one", (1, 3)),
    ("packed", (2, 4, 3)), ("packed in no order", (2, 4, 3)), ("packed one step", (1, 4, 3)),
    ("packed, ragged", (3, 4, 3)),
]  # fmt: skip


def packed(x: Tensor, sort: bool) -> PackedSequence:
    T, B = x.shape[:2]
    if T == 3:
        return pack_padded_sequence(x, torch.tensor([2, 3, 1, 3]), enforce_sorted=False)
    order = torch.tensor([2, 0, 3, 1]) if sort else None
    back = None if order is None else order.argsort()
    x = x if order is None else x[:, order]
    sizes = torch.tensor([B] * T)
    return PackedSequence(x.reshape(T * B, -1), sizes, order, back)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [(5, 3, 17), (4, 9, 5)], ids=str)
def test_teams_go_it_too_and_may_change(
    kind: str, options: dict[str, Any], sizes: tuple[int, int, int], whole_teams: None
) -> None:
    T, B, H = sizes
    layer = getattr(throughtime, kind)(3, H, **options)
    x = torch.randn((B, T, 3) if layer.batch_first else (T, B, 3), dtype=layer.weight_hh_l0.dtype)
    teams: list[int] = []

    def caller(function: int, team: int, *how: Any) -> Callable[[int], None]:
        teams.append(team)
        return threads_caller(function, team, *how)

    threads_caller = threads.caller
    torch.set_num_threads(1)
    with long_way():
        wanted = step(layer, x, None)
    with only_short(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "caller", caller)
        for first, second in ((1, 1), (4, 4), (1, 4), (3, 1), (2, 3)):
            torch.set_num_threads(first)
            found = flat(layer(x))
            torch.set_num_threads(second)
            torch.manual_seed(3)
            loss: Any = sum((v * torch.randn_like(v)).sum() for v in found)
            same([*found, *torch.autograd.grad(loss, [x, *layer.parameters()])], wanted)
    assert set(teams) == {1, 2, 3, 4}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f[0])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_every_form_of_a_batch(
    kind: str, form: tuple[str, tuple[int, ...]], options: dict[str, Any], given: bool
) -> None:
    name, shape = form
    layer, x = getattr(throughtime, kind)(3, 5, **options), torch.randn(shape)
    state = start_of(layer, shape[1] if len(shape) == 3 else 1) if given else None
    if given and len(shape) == 2:
        state = tuple(v[:, 0] for v in state) if kind == "LSTM" else state[:, 0]

    class Packs(nn.Module):
        def forward(self, x: Tensor, state: Any) -> Any:
            y, final = layer(packed(x, "order" in name) if "packed" in name else x, state)
            return (y.data if "packed" in name else y), final

    module = Packs()
    module.layer = layer
    with long_way():
        wanted = step(module, x, state)
    same(step(module, x, state), wanted)  # lengths are prepared for when they come again
    with torch.no_grad():
        module(x, state)
    with only_short():
        same(step(module, x, state), wanted)
        with torch.no_grad():
            values = flat(module(x, state))
    same(values, [v.detach() for v in wanted[: len(values)]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 3), (3,)], ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_single_steps(kind: str, shape: tuple[int, ...], given: bool) -> None:
    cell, x = getattr(throughtime, f"{kind}Cell")(3, 5), torch.randn(shape)
    hx = [torch.randn(*shape[:-1], 5) for _ in range(2)]
    state = (tuple(hx) if kind == "LSTM" else hx[0]) if given else None
    with long_way():
        wanted = step(cell, x, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("throughtime.layers.drop_in.cells.scan", None)
        found = step(cell, x, state)
        again = step(cell, x, state)
    same(found, wanted)
    same(again, wanted)


@pytest.mark.parametrize("shape", [(6, 4), (2, 4), (18, 4)], ids=str)
def test_an_x_of_another_shape_is_named_in_backward(shape: tuple[int, ...]) -> None:
    layer, x = throughtime.GRU(4, 5), torch.randn(9, 4)
    y = layer(x)[0]
    x.data = torch.randn(shape)
    with pytest.raises(ShapeError, match="in this call"):
        y.sum().backward()


def test_one_step_of_a_cell_may_be_differentiated_twice() -> None:
    cell = throughtime.LSTMCell(2, 3, dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: cell(x), x)


@pytest.mark.parametrize("name", [n for n in available() if not cell_of(n).layout.inputs])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=str)
def test_any_cell_both_ways(name: str, options: dict[str, Any]) -> None:
    layer = throughtime.Recurrent(cell_of(name), 3, [6, 6], **options)
    x = torch.randn(4, 2, 3)
    state = tuple(
        tuple(torch.randn(layer.directions, 2, w) for w in widths) for widths in layer.widths
    )
    for given in (None, state):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShortLayers, "run", lambda *_: None)
            wanted = step(layer, x, given)
        same(step(layer, x, given), wanted)
        with torch.no_grad():
            values = flat(layer(x, given))
        same(values, [v.detach() for v in wanted[: len(values)]])


@pytest.mark.parametrize("options", [{"zoneout": {"h": 0.1}}, {"residual": True}, {"merge": "sum"},
                                     {"learn_initial": True}], ids=str)  # fmt: skip
def test_options_go_the_long_way(options: dict[str, Any]) -> None:
    layer = throughtime.Recurrent(cell_of("GRU"), 3, [6, 6], bidirectional=True, **options).eval()
    x = torch.randn(4, 2, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShortLayers, "run", lambda *_: None)
        wanted = step(layer, x, None)
    same(step(layer, x, None), wanted)


def test_one_tensor_may_be_two_states() -> None:
    layer, x, h = throughtime.LSTM(3, 5), torch.randn(4, 2, 3), torch.randn(1, 2, 5)
    with long_way():
        wanted = layer(x, (h, h))[0]
    with only_short():
        assert torch.equal(layer(x, (h, h))[0], wanted)
        assert torch.equal(layer(x, (h, h.clone()))[0], wanted)
        assert torch.equal(layer(x, (h, h))[0], wanted)


def test_one_tensor_that_was_two_states_is_looked_at_again() -> None:
    layer, x = throughtime.LSTM(3, 5), torch.randn(4, 2, 3)
    h = torch.randn(1, 2, 5, requires_grad=True)
    with long_way():
        (wanted,) = torch.autograd.grad(layer(x, (h, h))[0].sum(), h)
    for c in (h, h, h.clone(), h):
        (found,) = torch.autograd.grad(layer(x, (h, c))[0].sum(), h)
        assert torch.equal(found, wanted)


def test_twenty_thousand_calls_leave_nothing() -> None:
    layer = throughtime.GRU(3, 5)
    xs = [torch.randn(T, B, 3) for T in range(1, 21) for B in range(1, 11)]

    def run(turns: int) -> int:
        for _ in range(turns):
            for x in xs:
                layer(x)[0].sum().backward()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = run(10)
    assert run(40) - before < 4 << 20


def test_guards_written_in_python_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_private._HAS, "_C._dynamo.guards.TensorGuards", None)
    layer, x = throughtime.GRU(3, 5), torch.randn(4, 2, 3)
    with long_way():
        wanted = step(layer, x, None)
    with only_short():
        same(step(layer, x, None), wanted)
        same(step(layer, x, None), wanted)
    _strided(layer)
    with long_way():
        wanted = step(layer, x, None)
    same(step(layer, x, None), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_for_has_a_gradient(kind: str) -> None:
    layer, x = getattr(throughtime, kind)(3, 5), torch.randn(4, 2, 3)
    layer.weight_hh_l0.requires_grad_(False)
    with only_short():
        layer(x)[0].sum().backward()
    assert x.grad is None and layer.weight_hh_l0.grad is None
    assert layer.weight_ih_l0.grad is not None
    layer.requires_grad_(False)
    x.requires_grad_()
    with only_short():
        layer(x)[0].sum().backward()
    with long_way():
        wanted = torch.autograd.grad(layer(x)[0].sum(), x)[0]
    assert torch.equal(x.grad, wanted)  # type: ignore[arg-type]


def _in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)


def _data(layer: Any) -> None:
    layer.weight_hh_l0.data = layer.weight_hh_l0.data * 2


def _another(layer: Any) -> None:
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach() * 2)


def _swapped(layer: Any) -> None:
    weight = layer.weight_hh_l0.detach() * 2
    del layer.weight_hh_l0
    layer.weight_hh_l0 = weight


def _loaded(layer: Any) -> None:
    layer.load_state_dict({n: 2 * v for n, v in layer.state_dict().items()})


def _strided(layer: Any) -> None:
    layer.weight_hh_l0.data = (layer.weight_hh_l0.data * 2).t().contiguous().t()


class _Twice(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        return 2 * v


def _parametrised(layer: Any) -> None:
    nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", _Twice())


def _doubled(layer: Any) -> None:
    layer.double()


CHANGES = [
    _in_place, _data, _another, _swapped, _loaded, _strided, _parametrised, _doubled,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_stale(kind: str, change: Callable[[Any], None]) -> None:
    layer, x = getattr(throughtime, kind)(3, 5), torch.randn(4, 2, 3)
    before = layer(x)[0]
    change(layer)
    x = x.to(layer.all_weights[0][0].dtype)
    found = flat(layer(x))
    with torch.no_grad():
        values = flat(layer(x))
    with long_way():
        wanted = flat(layer(x))
    same(found, wanted)
    same(values, wanted)
    assert change is _doubled or not torch.equal(found[0], before)


def test_functional_call_reads_what_it_is_given() -> None:
    layer, x = throughtime.GRU(3, 5), torch.randn(4, 2, 3)
    layer(x)
    given = {n: 2 * v.detach() for n, v in layer.named_parameters()}
    found = torch.func.functional_call(layer, given, x)[0]
    layer.load_state_dict(given)
    assert torch.equal(found, layer(x)[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_copy_has_its_own(copied: Callable[[Any], Any]) -> None:
    layer, x = throughtime.LSTM(3, 5), torch.randn(4, 2, 3)
    y = layer(x)[0]
    other = copied(layer)
    assert other._short is not layer._short and not other._short.calls
    _in_place(layer)
    assert torch.equal(other(x)[0], y)


def test_weights_too_short_or_of_another_shape_are_refused() -> None:
    layer, x = throughtime.GRU(3, 5), torch.randn(4, 2, 3)
    layer(x)
    layer.weight_hh_l0.data = torch.zeros(15, 4)
    with pytest.raises(ShapeError, match=r"weight_hh must be \(15, 5\)"):
        layer(x)


def test_outputs_that_were_written_over_are_computed_again() -> None:
    layer, x = throughtime.GRU(3, 5), torch.randn(4, 2, 3)
    wanted = torch.autograd.grad(layer(x)[0].sum(), layer.weight_hh_l0)[0]
    y = layer(x)[0]
    loss = y.sum()
    with torch.no_grad():
        y.zero_()
    assert torch.equal(torch.autograd.grad(loss, layer.weight_hh_l0)[0], wanted)


STACKS: list[Callable[[], Any]] = [
    lambda: throughtime.LSTM(3, 5, 3, bidirectional=True, dtype=torch.float64),
    lambda: throughtime.RNN(3, 5, 2, dtype=torch.float64),
    lambda: throughtime.Recurrent(cell_of("GRU"), 3, [5, 4], bidirectional=True).double(),
]


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_is_one_node(stack: Callable[[], Any]) -> None:
    layer, x = stack(), torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    found = flat(layer(x))
    nodes = {v.grad_fn for v in found}
    assert {type(node).__name__ for node in nodes} == {"ShortStackBackward"} and len(nodes) == 1


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_differentiates_what_is_asked_for(stack: Callable[[], Any]) -> None:
    layer, x = stack(), torch.randn(4, 2, 3, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    for asked in (["x"], names[:1], names[-1:], [n for n in names if "l1" in n], ["x", *names]):
        for which in ("y", "first state", "all"):
            grads = []
            for way in (long_way, contextlib.nullcontext):
                x.requires_grad_("x" in asked)
                for name, p in layer.named_parameters():
                    p.requires_grad_(name in asked)
                with way():
                    y, *states = flat(layer(x))
                of = {"y": [y], "first state": [states[0][:1]], "all": [y, *states]}[which]
                leaves = [x, *layer.parameters()]
                wanted = [v for v in leaves if v.requires_grad]
                torch.manual_seed(1)
                nothing: Any = sum(0 * v.sum() for v in wanted)  # of what depends on none of these
                loss = sum(((v * torch.randn_like(v)).sum() for v in of), nothing)
                grads.append(list(torch.autograd.grad(loss, wanted)))
            assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_may_be_differentiated_twice(stack: Callable[[], Any]) -> None:
    layer = stack()
    leaf = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    leaves = [leaf, *layer.parameters()]

    def twice() -> list[Tensor]:
        x = leaf * leaves[1].sum()  # x is made from a weight
        loss: Any = sum(v.pow(2).sum() for v in flat(layer(x)))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        loss = sum(v.pow(2).sum() for v in first)
        return [*first, *torch.autograd.grad(loss, leaves)]

    found = twice()
    with long_way():
        wanted = twice()
    for v, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(v, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stack", STACKS)
def test_many_gradients_of_a_stack_at_once(stack: Callable[[], Any]) -> None:
    layer, x = stack(), torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    y = flat(layer(x))[0]
    d = torch.randn(4, *y.shape, dtype=y.dtype)
    leaves = [x, *layer.parameters()]
    found = torch.autograd.grad(y, leaves, d, is_grads_batched=True, retain_graph=True)
    wanted = [torch.autograd.grad(y, leaves, one, retain_graph=True) for one in d]
    for v, w in zip(found, map(torch.stack, zip(*wanted, strict=True)), strict=True):
        torch.testing.assert_close(v, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stack", STACKS)
def test_outputs_of_a_stack_may_be_written_over(stack: Callable[[], Any]) -> None:
    layer, x = stack(), torch.randn(4, 2, 3, dtype=torch.float64)
    wanted = step(layer, x, None)
    leaves = [x, *layer.parameters()]
    y, *states = flat(layer(x))
    torch.manual_seed(3)
    losses = [(v * torch.randn_like(v)).sum() for v in (y, *states)]
    y.detach().mul_(2)
    with torch.no_grad():
        y.add_(1)
    loss: Any = sum(losses)
    same(list(torch.autograd.grad(loss, leaves)), wanted[1 + len(states) :])


def test_outputs_may_be_written_in_place() -> None:
    for first in (False, True):
        layer, x = throughtime.GRU(3, 5, batch_first=first), torch.randn(4, 2, 3)
        wanted = torch.autograd.grad((2 * layer(x)[0]).sum(), layer.weight_hh_l0)[0]
        y = layer(x)[0]
        y *= 2
        assert torch.equal(torch.autograd.grad(y.sum(), layer.weight_hh_l0)[0], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_has_a_derivative(kind: str) -> None:
    layer = getattr(throughtime, kind)(2, 3, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


def test_many_shapes_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "MOST_SHAPES", 8)
    layer = throughtime.LSTM(3, 5)
    xs = [torch.randn(T, 1, 3) for T in range(2, 20)]
    with long_way():
        wanted = [layer(x)[0] for x in xs]
    for _ in range(2):
        with only_short():
            assert all(torch.equal(layer(x)[0], y) for x, y in zip(xs, wanted, strict=True))
    assert len(layer._short.calls) == 8


def test_a_class_without_ways_of_its_own_goes_it() -> None:
    class Named(throughtime.GRU):
        """A user's own."""

    layer, x = Named(3, 5), torch.randn(4, 2, 3)
    with long_way():
        wanted = step(layer, x, None)
    with only_short():
        same(step(layer, x, None), wanted)


def test_a_class_with_its_own_carry_is_asked() -> None:
    class Own(throughtime.GRU):
        def carry(self, batch: Any, record: bool = False) -> Any:
            y, results = super().carry(batch, record)
            return 2 * y, results

    layer, x = Own(3, 5), torch.randn(4, 2, 3)
    plain = throughtime.GRU(3, 5)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x)[0], 2 * plain(x)[0])


def test_threads_may_share_a_layer() -> None:
    layer = throughtime.LSTM(3, 5)
    xs = [torch.randn(T, B, 3) for T in (2, 5) for B in (1, 2, 3, 4)]
    with long_way():
        wanted = [layer(x)[0] for x in xs]

    def run(i: int) -> bool:
        same = [torch.equal(layer(xs[i])[0], wanted[i]) for _ in range(200)]
        layer(xs[i])[0].sum().backward()
        return all(same)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))


def test_two_threads_may_pack_a_matrix_at_once() -> None:
    packs, found = Packs(narrow=False), []

    def make(depth: int) -> Any:
        if depth:  # as far as another thread would be
            found.append(packs.address(matrix(depth - 1), [(0, 1)]))
        return np.ones((1, 16, 4), np.float32)

    def matrix(depth: int) -> PackedMatrix:
        return PackedMatrix("U", 1, 4, lambda: make(depth))

    found.append(packs.address(matrix(1), [(0, 1)]))
    assert found[0] == found[1]


def test_a_thread_that_draws_is_not_taken_for_the_step() -> None:
    class Mine(Cell):
        gates = state = ("h",)

        def step(self, a: Any, U: Any, s: Any, p: Any) -> Any:
            time.sleep(0.002)
            return (torch.tanh(a.h + U.h @ s.h),)

    done = threading.Event()

    def draw() -> None:
        while not done.wait(0.005):
            torch.rand(1)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        assert not trace(Mine()).unsupported
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_whether_gradients_by_the_start_are_wanted_changes_no_other(kind: str, steps: int) -> None:
    """0: a module of one step."""
    lead = (steps, 5) if steps else (5,)
    module: Any = getattr(throughtime, kind if steps else f"{kind}Cell")(33, 70)
    x, found = torch.randn(*lead, 33, requires_grad=True), []
    first = (1, 5) if steps else (5,)
    h = [torch.randn(*first, 70) for _ in range(1 + (kind == "LSTM"))]
    for wanted in (False, True, False):
        state = [v.clone().requires_grad_(wanted) for v in h]
        with only_short():
            result = module(x, tuple(state) if kind == "LSTM" else state[0])
        y = result if torch.is_tensor(result) else result[0]
        some = [x, *module.parameters(), *(state if wanted else ())]
        found.append(torch.autograd.grad(y.square().sum(), some))
    for grads in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], grads, strict=False))
