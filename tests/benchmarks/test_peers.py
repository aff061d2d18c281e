"""The peers compute what torch.nn computes, on a tiny odd shape."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from benchmarks.speed.material import material
from benchmarks.speed.own_cell import CoupledPeephole
from benchmarks.speed.parity import compare
from benchmarks.speed.peers import build
from benchmarks.speed.works import BUILT_IN
from tests.benchmarks.small import TINY
from throughtime import check

NEEDS = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


def values(name: str, m: Any) -> dict[str, torch.Tensor]:
    """What a contender computes."""
    computed = build(name, m).values
    assert computed is not None
    return computed()


@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("name", NEEDS)
def test_an_inference_peer_has_torchs_values(name: str, cell: str) -> None:
    missing = [p for p in NEEDS[name] if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; pip install 'throughtime[bench]'")
    m = material(cell, TINY, "inference")
    expected = values("torch.nn", m)
    found = compare(expected, values(name, m))
    assert found.ok, found
    assert set(expected) == ({"y", "h_n", "c_n"} if cell == "LSTM" else {"y", "h_n"})


@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_our_layers_have_torchs_values_and_gradients(cell: str, backend: str) -> None:
    m = material(cell, TINY, "training", backend)
    expected = values("torch.nn", m)
    found = compare(expected, values("throughtime", m))
    assert found.ok, found
    assert {n for n in expected if n.startswith("d_")} == {"d_x", *(f"d_{n}" for n in m.weights)}


def test_the_eager_loop_is_the_own_cell() -> None:
    m = material("own", TINY, "training", "reference")
    expected = values("throughtime", m)
    found = compare(expected, values("eager loop", m))
    assert found.ok, found
    assert {"d_w_ci_l0", "d_w_co_l0", "d_weight_hh_l0", "d_x"} <= set(expected)


def test_the_own_cell_obeys_the_laws() -> None:
    assert "laws hold" in str(check(CoupledPeephole()))


@pytest.mark.parametrize("name", ["y", "d_x", "d_weight_hh_l0"])
def test_a_small_error_anywhere_is_red(name: str) -> None:
    m = material("GRU", TINY, "training")
    expected = values("torch.nn", m)
    changed = {n: v.clone() for n, v in expected.items()}
    changed[name].view(-1)[-1] += 1e-3 * expected[name].abs().max()
    found = compare(expected, changed)
    assert (found.ok, found.worst) == (False, name)
    assert found.error == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    "got", [{}, {"y": torch.zeros(2, 3)}, {"y": torch.full((3, 2), float("nan"))}]
)
def test_what_is_missing_misshapen_or_nan_is_red(got: dict[str, torch.Tensor]) -> None:
    assert not compare({"y": torch.ones(3, 2)}, got).ok


def test_every_contender_is_given_the_same() -> None:
    one, two = (material("own", TINY, "training") for _ in range(2))
    assert torch.equal(one.x, two.x) and torch.equal(one.d_y, two.d_y)
    assert all(torch.equal(v, two.weights[n]) for n, v in one.weights.items())
    assert one.weights["w_ci_l0"].std() > 0  # zeros could not tell a peephole from none
