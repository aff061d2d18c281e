"""Small plain calls that torch's own node records: the same bits as the function in Python, and
nothing that a user may do with a graph is otherwise."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.testing import assert_close

import throughtime
from tests.compiler.still import count_teams
from tests.house.source import fresh
from tests.scan.calls import Names
from throughtime import Recurrent, cells
from throughtime.scan.kernels import register
from throughtime.scan.node import gradients_of

pytestmark = pytest.mark.skipif(
    not register(gradients_of), reason="this torch has no node that may be carried"
)

NODE = "MiopenRnnBackward0"


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def results(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [v for part in value for v in results(part)]


Make = Callable[[torch.dtype], tuple[nn.Module, tuple[Any, ...]]]


def cell(kind: str, B: int | None, I: int, H: int, given: bool = False, **options: Any) -> Make:
    def make(dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
        lead = () if B is None else (B,)
        state = random(*lead, H, dtype=dtype)
        both = (state, random(*lead, H, dtype=dtype)) if kind == "LSTMCell" else state
        layer = getattr(throughtime, kind)(I, H, dtype=dtype, **options)
        return layer, (random(*lead, I, dtype=dtype), *([both] * given))

    return make


def layer(
    kind: str, T: int, B: int | None, I: int, H: int, given: bool = False, **options: Any
) -> Make:
    def make(dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
        lead = () if B is None else (B,)
        count = options.get("num_layers", 1)
        state = random(count, *lead, H, dtype=dtype)
        both = (state, random(*state.shape, dtype=dtype)) if kind == "LSTM" else state
        made = getattr(throughtime, kind)(I, H, dtype=dtype, **options)
        return made, (random(T, *lead, I, dtype=dtype), *([both] * given))

    return make


def own(T: int, B: int, I: int, H: int, **options: Any) -> Make:
    def make(dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
        made = Recurrent(cells.MGU(), I, H, dtype=dtype, **options)
        return made, (random(T, B, I, dtype=dtype),)

    return make


def packed(kind: str, T: int, B: int, I: int, H: int, **options: Any) -> Make:
    def make(dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
        made = getattr(throughtime, kind)(I, H, dtype=dtype, **options)
        x = random(T, B, I, dtype=dtype)
        return made, (pack_padded_sequence(x, torch.tensor([T] * B)),)

    return make


def own_stack() -> Make:
    def make(dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
        made = Recurrent(cells.LEM(), 3, [5, 6], dtype=dtype)
        return made, (random(4, 2, 3, dtype=dtype),)

    return make


CALLS: dict[str, Make] = {
    "RNNCell": cell("RNNCell", 3, 4, 8),
    "RNNCell, relu, no bias": cell("RNNCell", 2, 16, 16, nonlinearity="relu", bias=False),
    "GRUCell, one row": cell("GRUCell", None, 5, 7),
    "GRUCell, given": cell("GRUCell", 2, 32, 16, given=True),
    "LSTMCell": cell("LSTMCell", 1, 17, 33),
    "LSTMCell, given": cell("LSTMCell", 9, 3, 20, given=True),
    "LSTMCell, one row, given": cell("LSTMCell", None, 3, 5, given=True),
    "RNN": layer("RNN", 5, 2, 3, 6),
    "GRU": layer("GRU", 4, 3, 16, 16),
    "GRU, unbatched": layer("GRU", 6, None, 7, 9),
    "GRU, given": layer("GRU", 3, 2, 5, 18, given=True),
    "RNN, three layers": layer("RNN", 2, 2, 6, 7, num_layers=3),
    "GRU, two layers": layer("GRU", 1, 1, 4, 50, num_layers=2),
    "GRU, batch first": layer("GRU", 4, 3, 16, 5, batch_first=True),
    "RNN, batch first, odd": layer("RNN", 3, 2, 5, 6, batch_first=True, num_layers=2),
    "LSTM": layer("LSTM", 4, 2, 3, 6),
    "LSTM, given": layer("LSTM", 3, 1, 16, 20, given=True),
    "LSTM, unbatched": layer("LSTM", 3, None, 5, 7),
    "LSTM, three layers": layer("LSTM", 2, 2, 6, 7, num_layers=3),
    "LSTM, batch first": layer("LSTM", 3, 2, 6, 7, batch_first=True, num_layers=2),
    "LSTM, packed": packed("LSTM", 4, 3, 5, 6),
    "LSTM, packed, one row": packed("LSTM", 3, 1, 4, 16, num_layers=2),
    "GRU, packed": packed("GRU", 2, 2, 7, 3),
    "MGU": own(4, 2, 3, 5),
    "LEM, two layers": own_stack(),
}
every_call = pytest.mark.parametrize("name", CALLS)


def ready(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
    """A module and its arguments, called before: a shape that comes once is not worth a program."""
    made, args = CALLS[name](dtype)
    for v in results(args):
        v.requires_grad_()
    made(*args)
    return made, args


def is_recorded_by_torch(y: Tensor) -> bool:
    """Whether an output, or what it is a view of, comes from torch's node."""
    last = y.grad_fn
    assert last is not None
    names = [last.name(), *(above.name() for above, _ in last.next_functions if above)]
    return NODE in names[0] or (names[0] == "TransposeBackward0" and NODE in names[1])


def plain(v: Tensor) -> Tensor:
    return v


def by_function(made: nn.Module, args: Sequence[Any]) -> list[Tensor]:
    """The same call, recorded by the function in Python: hooks see what is saved."""
    with saved_tensors_hooks(plain, plain):
        return results(made(*args))


def leaves(made: nn.Module, args: Sequence[Any]) -> list[Tensor]:
    """What gradients may be asked for."""
    return [*results(args), *made.parameters()]


def weighted(values: Sequence[Tensor], which: Sequence[bool]) -> Tensor:
    """A sum of some results that gives each number another gradient."""
    parts = [
        (v * torch.arange(v.numel(), dtype=v.dtype).view(v.shape).sin()).sum()
        for v, wanted in zip(values, which, strict=True)
        if wanted
    ]
    return torch.stack(parts).sum()


@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_are_those_of_the_function(name: str, dtype: torch.dtype) -> None:
    made, args = ready(name, dtype)
    inputs = leaves(made, args)
    function = by_function(made, args)
    assert not is_recorded_by_torch(function[0])
    count = len(function)
    for which in [(True,) * count, (True, *[False] * (count - 1)), (False, *[True] * (count - 1))]:
        if not any(which):
            continue
        wanted = torch.autograd.grad(
            weighted(by_function(made, args), which), inputs, allow_unused=True
        )
        for _ in range(3):  # the first of its kind is Python's, the others are the kernel's
            found = results(made(*args))
            assert is_recorded_by_torch(found[0])
            assert all(torch.equal(v, w) for v, w in zip(found, function, strict=True))
            grads = torch.autograd.grad(weighted(found, which), inputs, allow_unused=True)
            for v, w in zip(grads, wanted, strict=True):
                assert (v is None) == (w is None)
                assert v is None or (w is not None and torch.equal(v, w))


@every_call
def test_teams_are_called_by_the_kernels(
    name: str, whole_teams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    made, args = ready(name, torch.float32)
    inputs, count = leaves(made, args), len(results(made(*args)))

    def values_and_gradients(late: int) -> list[Tensor]:
        found = results(made(*args))
        assert is_recorded_by_torch(found[0])
        torch.set_num_threads(late)
        loss = weighted(found, [True] * count)
        return [*found, *torch.autograd.grad(loss, inputs)]

    wanted, teams = values_and_gradients(1), count_teams(monkeypatch)
    for number in (2, 3):
        for late in (number, number, number, 1, number + 1):
            torch.set_num_threads(number)
            made(*args)
            forward = len(teams)
            teams.clear()
            found = values_and_gradients(late)
            assert all(torch.equal(v, w) for v, w in zip(found, wanted, strict=True))
            assert teams == [number] * len(teams)
            assert len(teams) == forward * (1 if late == 1 else 2) > 0
            teams.clear()


@every_call
def test_any_part_of_the_gradients(name: str) -> None:
    made, args = ready(name, torch.float32)
    inputs = leaves(made, args)
    y = results(made(*args))[0]
    whole = torch.autograd.grad(y.square().sum(), inputs, retain_graph=True, allow_unused=True)
    for some in ([0], [len(inputs) - 1], [1, 2], list(range(1, len(inputs)))):
        for _ in range(2):
            found = torch.autograd.grad(
                y.square().sum(), [inputs[i] for i in some], retain_graph=True, allow_unused=True
            )
            for i, v in zip(some, found, strict=True):
                w = whole[i]
                assert (v is None) == (w is None) and (v is None or torch.equal(v, w))


@every_call
def test_results_may_be_changed_in_place(name: str) -> None:
    made, args = ready(name, torch.float64)
    inputs = leaves(made, args)
    for _ in range(2):
        changed = results(made(*args))
        for v in changed:
            v.mul_(2).add_(1)
        whole = torch.stack([v.sum() for v in changed]).sum()
        wanted = torch.stack([(2 * v + 1).sum() for v in by_function(made, args)]).sum()
        grads = torch.autograd.grad(whole, inputs)
        assert_close(grads, torch.autograd.grad(wanted, inputs))


@every_call
def test_gradients_that_are_scattered_or_expanded(name: str) -> None:
    made, args = ready(name, torch.float64)
    inputs = leaves(made, args)
    for _ in range(2):
        y = results(made(*args))[0]
        ones = torch.ones((), dtype=y.dtype)
        for d in (
            ones.expand(y.shape),
            random(*y.shape[::-1], dtype=y.dtype).permute(*range(y.dim())[::-1]),
        ):
            found = torch.autograd.grad(y, inputs, d, retain_graph=True, allow_unused=True)
            again = by_function(made, args)[0]
            wanted = torch.autograd.grad(again, inputs, d.contiguous(), allow_unused=True)
            assert_close(found, wanted, rtol=0, atol=0)


@every_call
def test_a_derivative_of_the_derivative(name: str) -> None:
    made, args = ready(name, torch.float64)
    inputs = leaves(made, args)

    def second(values: list[Tensor]) -> tuple[Tensor, ...]:
        some = torch.autograd.grad(
            torch.stack([v.square().sum() for v in values]).sum(), inputs, create_graph=True
        )
        return torch.autograd.grad(sum(v.square().sum() for v in some), inputs)  # type: ignore[arg-type]

    torch.stack([v.sum() for v in results(made(*args))]).sum().backward()
    assert_close(second(results(made(*args))), second(by_function(made, args)))


def test_a_mode_sees_the_backward_pass() -> None:
    made, args = ready("GRUCell, given", torch.float32)
    inputs = leaves(made, args)
    y = results(made(*args))[0]
    wanted = torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    with Names() as names:
        found = torch.autograd.grad(y.sum(), inputs)
    assert any(name.startswith("throughtime::") for name in names.seen), names.seen
    assert_close(found, wanted, rtol=0, atol=0)


def test_what_was_changed_is_named_as_by_torch() -> None:
    made, args = ready("GRUCell, given", torch.float32)
    for _ in range(2):
        y = made(*args)
        with torch.no_grad():
            made.weight_hh.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    y = made(*args)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_an_error_of_python_ends_the_backward_pass() -> None:
    made, args = ready("RNNCell", torch.float32)
    before, seen = nn.Linear(4, 4), list[Any]()
    made(*args).sum().backward()
    made.zero_grad()
    z = before(args[0])
    z.register_hook(seen.append)
    y = made(z)
    made.weight_ih.data = made.weight_ih.data.double()
    with pytest.raises(RuntimeError, match=r"TypeError: weight_ih must be torch.float32"):
        (y.sum() + z.sum()).backward()
    assert all(p.grad is None for p in (*made.parameters(), *before.parameters())) and not seen


def deep(depth: int, call: Callable[[], Any]) -> Any:
    return call() if depth == 0 else deep(depth - 1, call)


def test_a_backward_pass_without_stack_is_an_error() -> None:
    made, args = ready("GRUCell, given", torch.float32)
    inputs = list(made.parameters())
    ended = 0
    for depth in range(sys.getrecursionlimit() - 400, sys.getrecursionlimit() - 4):
        y = made(*args).sum()
        try:
            deep(depth, lambda y=y: torch.autograd.grad(y, inputs, create_graph=True))
        except (RecursionError, RuntimeError) as error:
            assert "recursion" in str(error) or "cut off" in str(error), error
            ended += 1
    assert ended
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", lambda _: None)
        gc.collect()


SIGNALS = """
import random, signal, sys, torch, throughtime
sys.unraisablehook = lambda _: None
made, x = throughtime.GRUCell(3, 5), torch.randn(2, 3)
made(x)
inputs = list(made.parameters())
def late(*_):
    raise TimeoutError("late")
signal.signal(signal.SIGALRM, late)
random.seed(0)
ended = 0
for _ in range(3000):
    try:
        y = made(x).sum()
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
        torch.autograd.grad(y, inputs, create_graph=True)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except (TimeoutError, RuntimeError) as error:
        assert "late" in str(error) or "cut off" in str(error), error
        ended += 1
assert ended > 100, ended
"""


def test_a_signal_in_a_backward_pass_is_an_error() -> None:
    fresh(SIGNALS)


def test_compiled_autograd_carries_it() -> None:
    made, args = ready("GRUCell, given", torch.float32)
    inputs = leaves(made, args)
    made(*args).sum().backward()
    wanted = [v.grad.clone() for v in inputs if v.grad is not None]
    for _ in range(2):
        for v in inputs:
            v.grad = None
        y = made(*args).sum()
        eager: Any = compiled_autograd._enable(torch.compile(backend="eager"))  # type: ignore[no-untyped-call]
        with warnings.catch_warnings(), eager:
            warnings.filterwarnings("ignore", "The .grad attribute")  # of what a node has saved
            y.backward()
        assert_close([v.grad for v in inputs], wanted)


def test_calls_of_the_operator_by_others_are_refused() -> None:
    made, args = ready("RNNCell", torch.float32)
    saved: Any = made(*args).grad_fn
    program, weights = saved._saved_dropout_state, list(made.parameters())
    (call,) = vars(made)["_short"].calls.values()
    number = call.carry.__self__._number
    for other in (None, program.clone(), torch.zeros(3), torch.zeros(200, dtype=torch.int64)):
        with pytest.raises(RuntimeError, match="carries calls of throughtime's layers"):
            forward(args[0], weights, args[0], other)
        with pytest.raises(RuntimeError, match="throughtime's layers have saved"):
            gradient(saved, other, 0)
        d_x, *_ = gradient(saved, other, number)  # a copy of a program: Python carries it
        assert d_x.shape == args[0].shape
    for x, some in ((args[0].double(), weights), (args[0][:1], weights), (args[0], weights[:3])):
        assert all(v is None for v in forward(x, some, args[0], program))


def forward(x: Tensor, weights: list[Any], hx: Tensor, program: Tensor | None) -> Any:
    rest = (0, 0, 1, False, 0.0, True, False, (), program)
    return torch.miopen_rnn(x, weights, 0, hx, None, *rest)


def gradient(saved: Any, program: Tensor | None, mode: int) -> Any:
    inputs = saved._saved_input, saved._saved_weight, 0, None, saved._saved_hx, None
    results = saved._saved_result0, None, saved._saved_result0, None
    rest = (mode, 0, 1, False, 0.0, True, False, [], program, saved._saved_result3)
    mask = [True, False, False, True]
    return torch.ops.aten.miopen_rnn_backward(*inputs, *results, *rest, mask)


def test_nothing_is_held_and_nothing_lost() -> None:
    made, args = ready("GRU", torch.float32)
    for _ in range(3):
        results(made(*args))[0].sum().backward()
    (call,) = vars(made)["_short"].calls.values()
    watched = weakref.ref(call.carry.__self__._recorded)
    y = results(made(*args))[0]
    weights = list(made.parameters())
    made.zero_grad()
    del made, call
    gc.collect()
    assert watched() is not None  # the graph needs it
    y.sum().backward()
    assert all(p.grad is not None for p in weights)
    del y
    gc.collect()
    assert watched() is None


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("name", ["LSTMCell, given", "GRU, two layers"])
def test_calls_do_not_grow(name: str) -> None:
    made, args = ready(name, torch.float32)

    def some() -> Iterator[None]:
        for i in range(4000):
            values = results(made(*args))
            sum(v.sum() for v in values).backward(retain_graph=i % 3 == 0)  # type: ignore[union-attr]
            yield

    list(some())
    before = memory()
    list(some())
    assert memory() - before < 1 << 20


def test_threads_share_a_layer() -> None:
    made, args = ready("LSTMCell, given", torch.float32)
    inputs = list(made.parameters())
    wanted = torch.autograd.grad(results(made(*args))[0].sum(), inputs)
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(100):
            found = torch.autograd.grad(results(made(*args))[0].sum(), inputs)
            if not all(torch.equal(v, w) for v, w in zip(found, wanted, strict=True)):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
