"""Autocast: products are rounded, the reference's state is not; compiled or not, it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.layers.own import Decaying
from throughtime import Cell, Recurrent, cells

CELLS = [cells.Elman(), cells.LSTM(), cells.GRU(), cells.LSTMPeephole(), cells.GRULayerNorm()]
GIVEN: dict[str, Any] = {"full": {}, "ragged": {"lengths": [4, 0, 2]}}


def flat(state: Any) -> list[Tensor]:
    return [v for part in state for v in part]


@pytest.mark.parametrize("cell", [*CELLS, cells.IndRNN(), cells.Skip(2)], ids=repr)
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.2}, {"bidirectional": True}], ids=str)
def test_the_reference_keeps_its_state_in_the_dtype_of_the_weights(
    cell: Cell, given: str, options: Any
) -> None:
    layer = Recurrent(cell, 3, 4, backend="reference", learn_initial=True, **options)
    x = torch.randn(4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for v in (x, x.bfloat16(), x[:0]):
            lengths = {"lengths": [0, 0, 0]} if given == "ragged" and not len(v) else GIVEN[given]
            y, state = layer(v, **lengths)
            again, last = layer(v, [[s.bfloat16() for s in part] for part in state], **lengths)
            assert {v.dtype for v in (y, again, *flat(state), *flat(last))} == {torch.float32}


def test_direct_inputs_of_another_precision() -> None:
    layer = Recurrent(Decaying(), 3, 4)
    x, dt, gain = torch.randn(4, 2, 3), torch.rand(4, 2, 1), torch.rand(4, 2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(x, inputs={"dt": dt, "gain": gain})
        halves = {"dt": dt.bfloat16(), "gain": gain.bfloat16()}
        torch.testing.assert_close(layer(x, inputs=halves)[0], y, rtol=5e-2, atol=5e-2)


def test_a_sum_over_many_steps_is_not_rounded() -> None:
    """Bfloat16 cannot add 1 to 256: a state kept in it would stop there."""

    class Count(Cell):
        gates = ("n",)
        state = ("n",)

        def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
            return (s.n + a.n,)

    layer = Recurrent(Count(), 1, 1, bias=False)
    nn.init.ones_(layer.weight_ih_l0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(600, 1, 1))[0][-1] == 600


def test_step_by_step_has_the_bits_of_the_whole() -> None:
    layer = Recurrent(cells.LSTM(), 3, 4, backend="reference", return_state=False)
    x = torch.randn(6, 2, 3)
    stream = layer.stream(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.stack([stream(v) for v in x]), layer(x))


@pytest.mark.parametrize(
    ("kind", "cell"), [("LSTM", cells.LSTM()), ("GRU", cells.GRU()), ("RNN", cells.Elman())]
)
def test_torchs_kernels_give_torchs_dtypes(kind: str, cell: Cell) -> None:
    theirs = getattr(nn, kind)(3, 4)
    ours = Recurrent(cell, 3, 4, backend="torch")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for v in (x, x.bfloat16()):
            assert torch.equal(ours(v)[0], theirs(v)[0])
            assert ours(v)[0].dtype == theirs(v)[0].dtype


# The compiler makes an instance of every autograd function that it meets.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["eager", "aot_eager"])
def test_what_is_compiled_is_not_rounded(name: str) -> None:
    layer = Recurrent(cells.LSTM(), 3, 4, bidirectional=True)
    x = torch.randn(4, 2, 3)
    expected = layer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.allclose(layer(x)[0].float(), expected, rtol=1e-5, atol=1e-6)
        found = torch.compile(layer, backend=name, fullgraph=True)(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_compiled_behind_a_layer_that_rounds(cell: Cell) -> None:
    """Compiled code runs an operator without autocast, on what came out of the layer before."""
    model = nn.Sequential(nn.Linear(3, 3), Recurrent(cell, 3, 4, return_state=False))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, model(x).float(), rtol=5e-2, atol=5e-2)
    y.square().sum().backward()
    assert all(v.grad.dtype == torch.float32 for v in model.parameters())
