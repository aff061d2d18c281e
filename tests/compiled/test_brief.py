"""Brief calls without a gradient, in machine code alone: the same bits, nothing stale, no trace."""

from __future__ import annotations

import copy
import gc
import resource
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.testing import assert_close

import throughtime
from tests.compiled.calls import long_way
from tests.compiler.still import count_teams
from tests.scan.calls import Names
from throughtime import Recurrent, cells
from throughtime.backends.cpu.short import ShortRegion
from throughtime.compiler.runtime import threads
from throughtime.errors import ShapeError
from throughtime.layers.drop_in.base import DropIn
from throughtime.scan import node
from throughtime.scan.kernels import register
from throughtime.scan.prepared import ShortWay

pytestmark = [
    pytest.mark.skipif(
        not register(node.gradients_of), reason="this torch tells too little of its objects"
    ),
    pytest.mark.usefixtures("no_gradients"),
]


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [v for part in value for v in flat(part)]


def same(found: Any, wanted: Any) -> None:
    for v, w in zip(flat(found), flat(wanted), strict=True):
        assert v.shape == w.shape and v.stride() == w.stride() and torch.equal(v, w)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, Python calls no region, and no call goes the long way."""

    def fail(*_: Any) -> None:
        raise AssertionError("Python carried the call")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShortRegion, "run", fail)
        patch.setattr(DropIn, "_check_call", fail)
        patch.setattr("throughtime.layers.drop_in.cells.scan", fail)
        yield


Call = tuple[nn.Module, tuple[Any, ...]]


def cell(kind: str, lead: tuple[int, ...], given: bool, **options: Any) -> Call:
    h, c = torch.randn(*lead, 5), torch.randn(*lead, 5)
    start = ((h, c) if kind == "LSTMCell" else h,) if given else ()
    return getattr(throughtime, kind)(3, 5, **options), (torch.randn(*lead, 3), *start)


def layer(kind: str, given: bool, packed: bool = False, **options: Any) -> Call:
    made = getattr(throughtime, kind)(3, 5, **options)
    dtype = made.weight_hh_l0.dtype
    T, B = 4, 2
    states = tuple(
        torch.randn(made.num_layers * made.directions, B, w, dtype=dtype) for w in made.widths[0]
    )
    x: Any = torch.randn((B, T, 3) if made.batch_first else (T, B, 3), dtype=dtype)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([2, 4]), enforce_sorted=False)
    return made, (x, *([states if kind == "LSTM" else states[0]] * given))


def own(cell: Any, given: bool) -> Call:
    made = Recurrent(cell, 3, [6, 7], bidirectional=True)
    state = tuple(tuple(torch.randn(2, 2, w) for w in widths) for widths in made.widths)
    return made, (torch.randn(4, 2, 3), *([state] * given))


CALLS: dict[str, Callable[[bool], Call]] = {
    "RNNCell": lambda given: cell("RNNCell", (2,), given, nonlinearity="relu"),
    "GRUCell, one row": lambda given: cell("GRUCell", (), given, bias=False),
    "LSTMCell": lambda given: cell("LSTMCell", (1,), given),
    "RNN": lambda given: layer("RNN", given, dtype=torch.float64),
    "GRU, batch first, three layers": lambda given: layer(
        "GRU", given, batch_first=True, num_layers=3
    ),
    "LSTM, both directions": lambda given: layer("LSTM", given, bidirectional=True, num_layers=2),
    "LSTM, projected": lambda given: layer("LSTM", given, proj_size=2, num_layers=2),
    "GRU, packed, ragged": lambda given: layer("GRU", given, True, num_layers=2),
    "LEM": lambda given: own(cells.LEM(), given),
    "sLSTM": lambda given: own(cells.SLSTM(), given),
}
every_call = pytest.mark.parametrize("name", CALLS)
states = pytest.mark.parametrize("given", [False, True])


@every_call
@states
def test_machine_code_carries_it_with_the_same_bits(name: str, given: bool) -> None:
    made, args = CALLS[name](given)
    with long_way():
        wanted = made(*args)
    made(*args)  # lengths are prepared for when they come again
    with alone():
        for _ in range(3):
            same(made(*args), wanted)
    with torch.enable_grad():
        made.requires_grad_(False)
        same(made(*args), wanted)
    with torch.inference_mode():
        found = made(*args)
    same(found, wanted)
    assert all(v.is_inference() and not v.requires_grad for v in flat(found))


@every_call
@states
def test_python_carries_it_where_torch_is_another(
    name: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "register", lambda _: False)
    made, args = CALLS[name](given)
    with long_way():
        wanted = made(*args)
    for _ in range(3):
        same(made(*args), wanted)


def ticks_meanwhile(work: Callable[[], object]) -> int:
    """How often another thread runs while this one works, which only hands over of itself."""
    count, done = 0, False

    def tick() -> None:
        nonlocal count
        while not done:
            count += 1
            time.sleep(0)

    other, interval = threading.Thread(target=tick), sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        other.start()
        before = count
        work()
        return count - before
    finally:
        done = True
        sys.setswitchinterval(interval)
        other.join()


@pytest.mark.parametrize(("T", "others"), [(3, False), (2000, True)])
def test_longer_calls_let_other_threads_run(
    T: int, others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "available", lambda: 1)
    made, x = throughtime.GRU(64, 64), torch.randn(T, 1, 64)
    with long_way():
        wanted = made(x)
    made(x)
    with alone():
        found = [made(x)]
        ticks = ticks_meanwhile(lambda: found.extend(made(x) for _ in range(20)))
    assert (ticks > 0) == others
    for values in found:
        same(values, wanted)


@every_call
def test_teams_are_called_by_machine_code(
    name: str, whole_teams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    made, args = CALLS[name](True)
    with long_way():
        wanted = made(*args)
    teams = count_teams(monkeypatch)
    for count in (2, 1, 3):
        torch.set_num_threads(count)
        made(*args)
        teams.clear()
        with alone():
            same(made(*args), wanted)
        assert set(teams) == ({count} if count > 1 else set())


def carries(made: Any) -> list[Any]:
    """What carries the calls that a module has prepared."""
    return [call.carry for call in vars(made)["_short"].calls.values()]


def test_it_takes_tensors_alone_that_lie_as_the_first_did() -> None:
    made, (x, (h, c)) = cell("LSTMCell", (2,), True)
    wanted = made(x, (h, c))
    (carry,) = carries(made)
    assert type(carry) is BuiltinFunctionType
    good = x, *made.parameters(), h, c
    same(carry(*good), wanted)

    class Own(Tensor):
        pass

    short = h.clone()
    short.untyped_storage().resize_(36)
    others: list[Any] = [
        None, 3, "h", h.double(), h[:1], h.t().contiguous().t(), short, h.as_subclass(Own),
        h.to("meta"), torch.randn(2, 5, 1), torch.empty(2, 0),
    ]  # fmt: skip
    for other in others:
        for i in range(len(good)):
            if i != 5 or not isinstance(other, Tensor):
                assert carry(*good[:i], other, *good[i + 1 :]) is None
        assert carry(*good[:5], other, c) is None
    assert carry() is None and carry(*good[:-1]) is None and carry(*good, c) is None
    del made
    gc.collect()
    same(carry(*good), wanted)


def test_a_pair_of_the_same_states_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (x, (h, c)) = cell("LSTMCell", (2,), True)
    pairs = (h, h), (h, c), (c, c), (c, h)
    with long_way():
        wanted = [made(x, pair) for pair in pairs]
    for pair in pairs:
        made(x, pair)
    monkeypatch.setattr(ShortWay, "_prepare", None)
    with alone():
        for pair, values in zip(pairs * 2, wanted * 2, strict=True):
            same(made(x, pair), values)


def test_x_may_be_the_state() -> None:
    made, h = throughtime.LSTMCell(5, 5), torch.randn(2, 5)
    for args in ((h, (h, h)), (h, (h.clone(), h)), (h, (h, h.clone())), (h, (h, h))):
        with long_way():
            wanted = made(*args)
        same(made(*args), wanted)


SHORT = {"x": "are out of bounds for storage", "h": "are out of bounds for storage",
         "weight_hh": r"weight_hh has \(20, 5\) numbers, for which its memory"}  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_a_storage_that_is_too_small_is_named(name: str) -> None:
    made, (x, (h, c)) = cell("LSTMCell", (2,), True)
    made(x, (h, c))
    v = {"x": x, "h": h}.get(name, made.weight_hh)
    bytes = v.untyped_storage().nbytes()
    for left in (bytes - 4, 0):
        v.untyped_storage().resize_(left)
        for _ in range(2):
            with pytest.raises((ShapeError, RuntimeError), match=SHORT[name]):
                made(x, (h, c))
    v.untyped_storage().resize_(bytes)
    v.zero_()
    with long_way():
        wanted = made(x, (h, c))
    with alone():
        same(made(x, (h, c)), wanted)


def _parametrize(made: nn.Module) -> None:
    parametrizations.weight_norm(made, "weight_hh")


CHANGES: dict[str, Callable[[Any], object]] = {
    "in place": lambda m: m.weight_hh.mul_(2),
    "data": lambda m: setattr(m.weight_hh, "data", m.weight_hh.data * 2),
    "another": lambda m: setattr(m, "weight_hh", nn.Parameter(m.weight_hh * 2)),
    "strided": lambda m: setattr(m.weight_hh, "data", torch.randn(5, 20).t()),
    "no gradient": lambda m: m.requires_grad_(False),
    "parametrized": _parametrize,
    "loaded": lambda m: m.load_state_dict({n: v * 3 for n, v in m.state_dict().items()}),
    "assigned": lambda m: m.load_state_dict(
        {n: v * 3 for n, v in m.state_dict().items()}, assign=True
    ),
    "moved": lambda m: m.double().float(),
    "negative": lambda m: setattr(
        m.weight_hh, "data", torch.complex(m.weight_hh * 0, m.weight_hh).conj().imag
    ),
    "resized": lambda m: m.weight_hh.untyped_storage().resize_(1000),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_weight_is_stale(change: str) -> None:
    made, args = cell("LSTMCell", (2,), True)
    for _ in range(2):
        made(*args)
    CHANGES[change](made)
    for _ in range(2):
        with long_way():
            wanted = made(*args)
        same(made(*args), wanted)
    other = copy.deepcopy(made)
    same(other(*args), wanted)
    with pytest.raises((RuntimeError, ShapeError, TypeError)):
        made.double()(*args)


def test_functional_call_reads_what_it_is_given() -> None:
    made, args = cell("GRUCell", (2,), True)
    before = made(*args)
    twice = {name: v * 2 for name, v in made.named_parameters()}
    with long_way():
        wanted = torch.func.functional_call(made, twice, args)
    same(torch.func.functional_call(made, twice, args), wanted)
    same(made(*args), before)


@contextmanager
def dual() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


@pytest.mark.parametrize("look", [Names, dual, nullcontext])
def test_who_looks_on_sees_it(look: Any) -> None:
    made, args = cell("LSTMCell", (2,), True)
    wanted = [made(*args) for _ in range(2)][0]
    calls: list[Any] = []
    with look() as seen, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "throughtime.layers.drop_in.cells.scan",
            lambda *given, scan=throughtime.layers.drop_in.cells.scan: (
                calls.append(given) or scan(*given)
            ),
        )
        assert_close(made(*args), wanted)  # torch's own operations may carry it
    assert bool(calls) == (look is not nullcontext)
    assert look is not Names or any("throughtime::" in name for name in seen.seen)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_transforms_and_traces_see_it() -> None:
    made, (x, (h, c)) = cell("LSTMCell", (2,), True)
    wanted = [made(x, (h, c)) for _ in range(2)][0]
    many = torch.stack([x, 2 * x])
    found = torch.func.vmap(lambda x: made(x, (h, c))[0])(many)
    assert_close(found, torch.stack([made(v, (h, c))[0] for v in many]))
    # What is called inside reads nothing of the transform's own.
    found = torch.func.vmap(lambda x: made(h[:, :3] * 0 + 1, (h, c))[0] + x.sum())(many * 0)
    assert_close(found, made(h[:, :3] * 0 + 1, (h, c))[0].expand(2, 2, 5))
    traced: Any = torch.jit.trace(made, (x, (h, c)), check_trace=False)  # type: ignore[no-untyped-call]
    assert_close(traced(2 * x, (h, c)), made(2 * x, (h, c)))
    graph = make_fx(lambda x: made(x, (h, c))[0])(x)
    assert_close(graph(2 * x), made(2 * x, (h, c))[0])
    exported = torch.export.export(made, (x, (h, c)))
    assert_close(exported.module()(2 * x, (h, c)), made(2 * x, (h, c)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert made(x, (h, c))[0].shape == h.shape
    with torch.enable_grad():
        d = torch.func.grad(lambda x: made(x, (h, c))[0].sum())(x)
    assert d.shape == x.shape and d.any()
    same(made(x, (h, c)), wanted)


def test_hooks_and_recorded_calls_come_in_turn() -> None:
    made, args = layer("LSTM", True)
    with long_way():
        wanted = made(*args)
    for _ in range(3):
        with torch.enable_grad():
            y, _ = made(*args)
            assert y.requires_grad
            y.sum().backward()
        same(made(*args), wanted)


def test_results_may_be_changed_and_hold_nothing_else() -> None:
    made, args = layer("LSTM", True, num_layers=2)
    wanted = [v.clone() for v in flat(made(*args))]
    for _ in range(2):
        values = flat(made(*args))
        assert len({v.untyped_storage().data_ptr() for v in values}) == 3
        for v in values:
            assert v.untyped_storage().nbytes() == v.nbytes and v._base is None
            v.fill_(7)
        same(made(*args), wanted)
    watched = [weakref.ref(v) for v in (*flat(args), *values)]
    del values, args, v
    assert not any(ref() for ref in watched)


def test_eight_threads_may_call_one_layer() -> None:
    made, other = throughtime.LSTM(3, 5, num_layers=2), throughtime.GRUCell(3, 5)
    xs = [torch.randn(T, 2, 3) for T in range(1, 9)]
    wanted = [(made(x), other(x[0])) for x in xs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for n in range(400):
            k = (i + n) % len(xs)
            with torch.no_grad():  # it is the thread's own
                found = made(xs[k]), other(xs[k][0])
            if not all(map(torch.equal, flat(found), flat(wanted[k]))):
                wrong.append(k)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert not wrong


def test_twenty_thousand_calls_leave_nothing() -> None:
    made, step = throughtime.LSTM(3, 5, num_layers=2), throughtime.GRUCell(3, 5)
    xs = [torch.randn(T, B, 3) for T in range(1, 21) for B in range(1, 11)]
    bad = torch.randn(2, 3).double()

    def run(turns: int) -> int:
        for _ in range(turns):
            for x in xs:
                made(x)
                step(x[0])
            for carry in carries(step):
                assert carry(bad, bad, bad, bad, bad) is None
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = run(10)
    assert run(50) - before < 4 << 20
