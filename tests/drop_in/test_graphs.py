"""Layers in the graphs that torch writes of a model: one node, or a sentence with the way out."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import throughtime
from throughtime import Recurrent, cells
from throughtime.errors import TransformError


class Tagger(nn.Module):
    """A model as users write them."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0])
        return y


@pytest.fixture
def quiet_traces() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "GRU": (throughtime.GRU(3, 4, 2, bidirectional=True), (5, 2, 3)),
    "compat": (throughtime.compat.LSTM(3, 4), (5, 2, 3)),
    "Recurrent": (Recurrent(cells.LEM(), 3, 4), (5, 2, 3)),
    "RNNCell": (throughtime.RNNCell(3, 4), (2, 3)),
    "GRUCell": (throughtime.GRUCell(3, 4), (2, 3)),
    "LSTMCell": (throughtime.LSTMCell(3, 4), (2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_torch_fx_writes_one_node(name: str) -> None:
    layer, shape = LAYERS[name]
    model = nn.Sequential(layer)
    graph = torch.fx.symbolic_trace(model)
    assert [(n.op, n.target) for n in graph.graph.nodes if n.op == "call_module"] == [
        ("call_module", "0")
    ]
    x = torch.randn(shape)
    found, expected = graph(x), model(x)
    assert_close(found, expected, rtol=0, atol=0)


def test_torch_fx_hands_states_and_names_on() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = throughtime.GRU(3, 4)

        def forward(self, x: Tensor, h: Tensor, lengths: Tensor) -> Tensor:
            y: Tensor = self.rnn(x, h, lengths=lengths)[0]
            return y

    model = Model()
    given = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.tensor([5, 3])
    graph = torch.fx.symbolic_trace(model)
    assert_close(graph(*given), model(*given), rtol=0, atol=0)


def test_torch_fx_cannot_look_inside() -> None:
    with pytest.raises(TransformError, match="trace a model that holds it"):
        torch.fx.symbolic_trace(throughtime.GRU(3, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_jit_script_is_told_the_way_out(name: str) -> None:
    for model in (LAYERS[name][0], nn.Sequential(nn.Identity(), LAYERS[name][0])):
        with pytest.raises(TransformError, match=r"give it throughtime.to_torch\(model\), or use"):
            torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_the_sentence_names_is_scripted() -> None:
    model = Tagger(throughtime.GRU(3, 4), 4)
    x = torch.randn(5, 2, 3)
    assert_close(torch.jit.script(throughtime.to_torch(model))(x), model(x))


def _nodes(graph: Any) -> list[str]:
    return [node.kind() for node in graph.nodes()]


def test_a_trace_holds_one_operator_for_all_layers(quiet_traces: None) -> None:
    traced = torch.jit.trace(throughtime.LSTM(3, 4, 3, bidirectional=True), torch.randn(5, 2, 3))
    assert _nodes(traced.inlined_graph).count("aten::lstm") == 1
    traced = torch.jit.trace(Recurrent(cells.LEM(), 3, (4, 5)), torch.randn(5, 2, 3))
    assert _nodes(traced.inlined_graph).count("throughtime::scan_traced") == 2


def test_the_older_onnx_exporter_may_hand_defaults_on_by_place() -> None:
    x = torch.randn(5, 2, 3)
    gru, lem = throughtime.GRU(3, 4), Recurrent(cells.LEM(), 3, 4)
    assert_close(gru(x, None, None, None, None), gru(x))
    assert_close(lem(x, None, None, None, None, None, None), lem(x))
    with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments but 4 were given"):
        gru(x, None, torch.tensor([5, 3]))


def test_the_older_onnx_exporter_is_told_of_cells_that_onnx_lacks(quiet_traces: None) -> None:
    layer = Recurrent(cells.LEM(), 3, 4)
    with pytest.raises(TransformError, match="not for this call of LEM"):
        torch.onnx.export(layer, (torch.randn(5, 2, 3),), io.BytesIO(), dynamo=False)


def test_the_older_onnx_exporter_writes_what_torch_has(quiet_traces: None) -> None:
    onnx = pytest.importorskip("onnx")
    for layer in (throughtime.GRU(3, 4, 2), Recurrent(cells.GRU(), 3, 4)):
        file = io.BytesIO()
        torch.onnx.export(layer.eval(), (torch.randn(5, 2, 3),), file, dynamo=False)
        nodes = onnx.load_from_string(file.getvalue()).graph.node
        assert "GRU" in {node.op_type for node in nodes}
