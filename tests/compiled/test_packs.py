"""Packed weights that wait for the next call change no bit of it, and hold no memory for long."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.compiled.calls import (
    FORMS,
    Sizes,
    assert_same,
    every_cell,
    every_dtype,
    of_parameters,
    random_call,
    results,
)
from tests.compiled.test_stale_weights import CHANGES
from throughtime import GRU, LSTM, Cell, Recurrent, cells
from throughtime.backends.call import Call
from throughtime.backends.cpu import forward_pass, products
from throughtime.backends.cpu.memory import fresh
from throughtime.scan.prepared import ShortWay

SIZES = (Sizes(3, 2, 5, 17, 2), Sizes(2, 1, 33, 16), Sizes(4, 3, 1, 37), Sizes(1, 7, 19, 3, 2))


@pytest.fixture(autouse=True)
def all_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small packs wait too, and none from another test; the short way packs at every call."""
    monkeypatch.setattr(products, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(ShortWay, "run", lambda *_: None)
    products._waiting.clear()
    yield
    products._waiting.clear()


def _alone(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What a call gives that packs for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "MOST_ROWS", -1)
        return run()


def _outputs(layer: Recurrent, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        y, state = layer(x)
    return [y, *(v for part in state for v in part)]


@every_dtype
@every_cell
@torch.no_grad()
def test_any_number_that_changes_is_seen(cell: Cell, dtype: torch.dtype) -> None:
    for sizes, form in zip(SIZES, FORMS, strict=False):
        call = of_parameters(random_call(cell, dtype, sizes, form, grad=False))

        def run(call: Call = call) -> list[Tensor]:
            return list(results(call).values())

        assert_same(run(), _alone(run), f"packed anew, {sizes}")
        assert_same(run(), _alone(run), f"found, {sizes}")
        assert products.waiting_bytes() > 0 or not any(call.weights)
        for weights in call.weights:
            for name, v in weights.items():
                for place in {0, v.numel() // 2, v.numel() - 1}:
                    v.detach().numpy().reshape(-1)[place] += 0.25
                    assert_same(run(), _alone(run), f"{name} at {place} of {sizes}")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_change_is_seen(change: Callable[[Recurrent], None], mode: type) -> None:
    layer = Recurrent(cells.LSTM(), 3, 17, bidirectional=True, backend="cpu")
    x = torch.randn(4, 2, 3)
    for _ in range(2):
        with mode():
            before = _outputs(layer, x)
        change(layer)
        with mode():
            after = _outputs(layer, x)
            assert not torch.equal(before[0], after[0]), "the change must show"
            assert_same(after, _alone(lambda: _outputs(layer, x)))


def test_calls_of_other_shapes_share_a_pack() -> None:
    layer = Recurrent(cells.GRU(), 5, 70, backend="cpu")
    xs = [torch.randn(T, B, 5) for T, B in ((3, 1), (2, 30), (9, 1), (1, 1), (3, 7))]
    for x in [*xs, *reversed(xs)]:
        assert_same(_outputs(layer, x), _alone(lambda x=x: _outputs(layer, x)))
    assert len(products._waiting) == 1


def test_layers_that_share_a_parameter_do_not_mix() -> None:
    first, second = (Recurrent(cells.GRU(), 5, 17, backend="cpu") for _ in range(2))
    third = Recurrent(cells.LSTM(), 5, 17, backend="cpu")
    second.weight_ih_l0 = first.weight_ih_l0
    x = torch.randn(3, 1, 5)
    for _ in range(2):
        for layer in (first, second, third):
            assert_same(_outputs(layer, x), _alone(lambda layer=layer: _outputs(layer, x)))
        third.weight_ih_l0 = torch.nn.Parameter(torch.randn(68, 5))


def test_a_copy_has_a_pack_of_its_own() -> None:
    layer = Recurrent(cells.LSTM(), 3, 17, backend="cpu")
    x = torch.randn(4, 1, 3)
    before = _outputs(layer, x)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight_hh_l0.mul_(2)
    changed = _outputs(other, x)
    assert not torch.equal(changed[0], before[0])
    assert_same(changed, _alone(lambda: _outputs(other, x)))
    assert_same(_outputs(layer, x), before)


def test_a_pickle_carries_no_pack() -> None:
    layer = Recurrent(cells.LSTM(), 3, 17, backend="cpu")
    x = torch.randn(4, 1, 3)
    fresh, saved = len(pickle.dumps(layer)), io.BytesIO()
    before = _outputs(layer, x)
    assert products.waiting_bytes() > 0
    assert len(pickle.dumps(layer)) == fresh
    torch.save(layer, saved)
    saved.seek(0)
    for again in (pickle.loads(pickle.dumps(layer)), torch.load(saved, weights_only=False)):
        assert_same(_outputs(again, x), before)


def test_a_pack_dies_with_its_layer() -> None:
    layers = [kind(5, 400, num_layers=2, bidirectional=True) for kind in (GRU, LSTM)]
    with torch.no_grad():
        for layer in layers:
            layer(torch.randn(3, 1, 5))
    assert len(products._waiting) == 4, "one a layer of the stack"
    del layers, layer
    gc.collect()
    assert products.waiting_bytes() == 0


def test_packs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [Recurrent(cells.GRU(), 5, 40, backend="cpu") for _ in range(5)]
    x = torch.randn(3, 1, 5)
    _outputs(layers[0], x)
    most = 5 * products.waiting_bytes() // 2
    monkeypatch.setattr(products, "MOST_BYTES", most)
    for _ in range(2):
        for layer in layers:
            assert_same(_outputs(layer, x), _alone(lambda layer=layer: _outputs(layer, x)))
            assert 0 < products.waiting_bytes() <= most


def test_calls_of_one_row_and_of_more_in_turns_take_no_new_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They pack in another order, in the same place."""
    layer = Recurrent(cells.GRU(), 5, 70, backend="cpu")
    xs = [torch.randn(3, B, 5) for B in (1, 4)]
    wanted = [_alone(lambda x=x: _outputs(layer, x)) for x in xs]
    _outputs(layer, xs[0])
    monkeypatch.setattr(products, "fresh", None)
    for _ in range(2):
        for x, want in zip(xs, wanted, strict=True):
            assert_same(_outputs(layer, x), want)


def test_who_finds_no_room_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights take more room than weights: units are padded to whole vectors."""
    layer = Recurrent(cells.GRU(), 5, 17, backend="cpu")
    x = torch.randn(3, 1, 5)
    wanted = _alone(lambda: _outputs(layer, x))
    weights = sum(v.nbytes for v in layer.parameters())
    monkeypatch.setattr(products, "MOST_BYTES", 2 * weights)
    monkeypatch.setattr(products, "fresh", None)
    assert_same(_outputs(layer, x), wanted)
    assert products.waiting_bytes() == 0


@pytest.mark.parametrize("cell", [cells.GRU(), cells.GRUD()], ids=repr)
@pytest.mark.parametrize("zoneout", [0.0, 0.3])
def test_training_in_segments_keeps_nothing(cell: Cell, zoneout: float) -> None:
    layer = Recurrent(cell, 5, 40, backend="cpu", checkpoint_every=2, zoneout=zoneout)
    inputs = {n: torch.rand(6, 1, cell.width(w, 40)) for n, w in cell.inputs.items()}
    layer(torch.randn(6, 1, 5), inputs=inputs or None)[0].sum().backward()
    assert products.waiting_bytes() == 0


def test_training_and_many_rows_keep_nothing() -> None:
    layer = Recurrent(cells.GRU(), 5, 40, backend="cpu")
    layer(torch.randn(3, 1, 5))[0].sum().backward()
    with torch.no_grad():
        layer(torch.randn(products.MOST_ROWS + 1, 1, 5))
        layer(torch.randn(1, products.MOST_ROWS + 1, 5))
    assert products.waiting_bytes() == 0
    with torch.no_grad():
        layer(torch.randn(products.MOST_ROWS, 1, 5))
    assert products.waiting_bytes() > 0


def test_python_threads_call_one_layer_at_once() -> None:
    layer = Recurrent(cells.LSTM(), 64, 300, backend="cpu")  # long enough to let others run
    xs = [torch.randn(40, B, 64) for B in (1, 2, 3, 1)]
    wanted = [_alone(lambda x=x: _outputs(layer, x)) for x in xs]
    with ThreadPoolExecutor(len(xs)) as pool:
        for _ in range(10):
            for found, want in zip(pool.map(lambda x: _outputs(layer, x), xs), wanted, strict=True):
                assert_same(found, want)
    assert len(products._waiting) == 1


def test_what_is_packed_is_the_copy_whoever_writes_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights lie behind their own copy, which overwrites them before they are packed: as
    another thread may. Packs and copy must then say the same, or what is wrong stays so."""
    H, x, layouts = 64, torch.randn(2, 1, 5), list[products.PackLayout]()
    layer = Recurrent(cells.Elman(), 5, H, backend="cpu")
    expected = _outputs(layer, x)

    def noted(owner: Tensor, layout: products.PackLayout) -> Any:
        layouts.append(layout)
        return products.packed(owner, layout)

    monkeypatch.setattr(forward_pass, "packed", noted)
    _outputs(layer, x)
    layout, shift = layouts[0], 64
    memory = fresh(2 * layout.bytes + shift + 4 * H * H)
    start = layout.bytes + layout.places["U_pack 0"] + shift
    weight = torch.from_numpy(memory[start : start + 4 * H * H]).view(torch.float32).view(H, H)
    weight.copy_(layer.weight_hh_l0.detach())
    layer.weight_hh_l0 = torch.nn.Parameter(weight)
    products._waiting.clear()
    monkeypatch.setattr(products, "fresh", lambda bytes: memory[:bytes])
    assert_close(_outputs(layer, x), expected, rtol=0, atol=0)
