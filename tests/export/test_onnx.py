"""ONNX both ways: what onnxruntime says of our files, and what we say of others'."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.export.built import TABLE, random_layer
from tests.export.test_c import MODELS
from throughtime import LSTM, Cell, Gate, Readout, Recurrent, cells
from throughtime.errors import DataError, OptionError
from throughtime.export import from_onnx, to_onnx
from throughtime.layers.stream.frozen import copy_frozen

onnx = pytest.importorskip("onnx", reason="no onnx here; pip install 'throughtime[export]'")

SIZES = ((1, 1), (4, 2), (9, 3), (17, 1), (30, 5))
"""Steps and rows, none of which an export knows."""


def session(file: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime; pip install onnxruntime")
    return runtime.InferenceSession(str(file))


def near(found: Any, wanted: Any) -> None:
    w = np.asarray(wanted.detach() if isinstance(wanted, torch.Tensor) else wanted)
    assert found.shape == w.shape
    assert np.abs(found - w).max(initial=0) <= 1e-5 * max(1.0, np.abs(w).max(initial=0))


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("cell", TABLE, ids=repr)
def test_every_cell_with_lengths_and_states(cell: Cell, both: bool, tmp_path: Path) -> None:
    layers = 1 if cell.layout.inputs else 2
    model = Recurrent(cell, 3, 7, num_layers=layers, bidirectional=both)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.2)
    run = session(to_onnx(model, tmp_path / "net.onnx", lengths=True, states=True))
    for T, B in SIZES:
        x, lengths = torch.randn(T, B, 3), torch.randint(0, T + 1, (B,))
        state = tuple(tuple(torch.rand_like(v) for v in s) for s in model.initial_state(B))
        inputs = {n: torch.rand(T, B, cell.width(cell.inputs[n], 7)) for n in cell.layout.inputs}
        y, last = model(x, state, lengths=lengths, inputs=inputs or None)
        feed = {"x": x.numpy(), "lengths": lengths.int().numpy()}
        feed |= {n: v.numpy() for n, v in inputs.items()}
        for i, layer in enumerate(state):
            feed |= {f"{n}_{i}": v.numpy() for n, v in zip(cell.state_names, layer, strict=True)}
        found, *states = run.run(None, feed)
        near(found, y)
        for a, b in zip(states, [v for layer in last for v in layer], strict=True):
            near(a, b)


@pytest.mark.soak
@pytest.mark.parametrize("cell", TABLE, ids=repr)
def test_two_runtimes_agree(cell: Cell, tmp_path: Path) -> None:
    """5 lengths by 3 batches; OpenVINO has the equations where it leaves an operator's part out."""
    openvino = pytest.importorskip("openvino", reason="no openvino here; pip install openvino")
    model = Recurrent(cell, 3, 7, bidirectional=True)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.3)
    run = session(to_onnx(model, tmp_path / "net.onnx"))
    part = type(cell) not in (cells.LSTMPeephole, cells.LSTMCoupled)
    file = to_onnx(model, tmp_path / "other.onnx", operators=part)
    other = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for T in (1, 4, 9, 17, 30):
        for B in (1, 2, 5):
            inputs = {n: torch.rand(T, B, cell.width(w, 7)) for n, w in cell.inputs.items()}
            x = torch.randn(T, B, 3)
            y, _ = model(x, inputs=inputs or None)
            feed = {"x": x.numpy(), **{n: v.numpy() for n, v in inputs.items()}}
            near(run.run(None, feed)[0], y)
            near(other(feed)[0], y)


def through(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    from throughtime.export.pieces import copy_model, list_pieces

    pieces = list_pieces(copy_model(model))
    with torch.no_grad():
        v: Any = x
        for piece in pieces:
            v = piece.module(v)
            v = v[0] if isinstance(v, tuple) else v
        return v


@pytest.mark.parametrize("name", MODELS)
def test_plain_stacks_of_all_that_may_stand_in_them(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    run = session(to_onnx(model, tmp_path / "net.onnx"))
    first = run.get_inputs()[0]
    for T, B in SIZES:
        whole = first.type == "tensor(int64)"
        x = torch.randint(10, (T, B)) if whole else torch.randn(T, B, first.shape[-1])
        near(run.run(None, {"x": x.numpy()})[0], through(copy_frozen(model), x))


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.LSTMPeephole(), cells.GRU()], ids=repr)
def test_every_layer_as_its_equations(cell: Cell, tmp_path: Path) -> None:
    """No operator in it, and the same answers."""
    model = random_layer(cell, 5, bidirectional=True)
    file = to_onnx(model, tmp_path / "net.onnx", operators=False)
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert "Scan" in kinds and not kinds & {"LSTM", "GRU", "RNN"}
    x = torch.randn(6, 2, 3)
    near(session(file).run(None, {"x": x.numpy()})[0], model(x)[0])


@pytest.mark.parametrize("merge", ["concat", "sum", "mean", "mul"])
def test_merges(merge: Any, tmp_path: Path) -> None:
    model = Recurrent(cells.GRU(), 3, 5, bidirectional=True, merge=merge, return_state=False)
    run = session(to_onnx(nn.Sequential(model, nn.Linear(model.output_size, 2)), tmp_path / "n"))
    assert run.get_outputs()[0].shape == ["T", "B", 2]


RECURRENT = (
    "gru_defaults gru_with_initial_bias gru_seq_length gru_batchwise gru_reverse gru_bidirectional "
    "lstm_defaults lstm_with_initial_bias lstm_with_peepholes lstm_batchwise lstm_reverse "
    "lstm_bidirectional simple_rnn_defaults simple_rnn_with_initial_bias rnn_seq_length "
    "simple_rnn_batchwise simple_rnn_reverse simple_rnn_bidirectional"
).split()


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The recurrent cases of ONNX's own tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    kinds = ("GRU", "LSTM", "RNN")
    recurrent = (t for t in found if t.model and t.model.graph.node[0].op_type in kinds)
    return {t.name.removeprefix("test_"): t for t in recurrent}


@pytest.mark.parametrize("case", RECURRENT)
def test_published_cases_in_and_out(case: str, published: Any, tmp_path: Path) -> None:
    """Their weights as constants; imported, run, exported, run by onnxruntime."""
    test = published[case]
    (given, wanted), node = test.data_sets[0], test.model.graph.node[0]
    by_name = dict(zip([i.name for i in test.model.graph.input], given, strict=True))
    for n in ("W", "R", "B", "P"):
        if n in by_name:
            tensor = onnx.numpy_helper.from_array(np.asarray(by_name[n]), n)
            test.model.graph.initializer.append(tensor)
    (tmp_path / "given.onnx").write_bytes(test.model.SerializeToString())
    (layer,) = from_onnx(tmp_path / "given.onnx").values()
    x = torch.from_numpy(np.asarray(by_name["X"]))
    y, last = layer(x)
    batch_first = any(a.name == "layout" and a.i for a in node.attribute)
    outputs = dict(zip([o for o in node.output if o], wanted, strict=True))
    h = last[0][0].transpose(0, 1) if batch_first else last[0][0]
    near(np.asarray(outputs["Y_h"]), h)
    run = session(to_onnx(layer, tmp_path / "again.onnx"))
    near(run.run(None, {"x": x.numpy()})[0], y)


def test_the_published_cases_are_all_there_are(published: Any) -> None:
    assert sorted(published) == sorted(RECURRENT)


def test_a_layer_goes_out_and_comes_back(tmp_path: Path) -> None:
    for cell in (cells.LSTM(), cells.LSTMPeephole(), cells.LSTMCoupled(), cells.GRU(),
                 cells.GRUResetBefore(), cells.Elman("relu"), cells.Elman("sigmoid")):  # fmt: skip
        layer = Recurrent(cell, 3, 5, bidirectional=True)
        (again,) = from_onnx(to_onnx(layer, tmp_path / "net.onnx")).values()
        assert again.cell is layer.cell
        for name, value in layer.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name


def test_an_import_leaves_as_c(tmp_path: Path) -> None:
    from tests.export.built import need, test_of
    from throughtime.export import to_c

    (layer,) = from_onnx(to_onnx(nn.LSTM(2, 6), tmp_path / "net.onnx")).values()
    to_c(layer, tmp_path / "c")
    assert test_of(tmp_path / "c", need("gcc", "gcc"), "-O1").startswith("PASS")


def changed(file: Path, change: Any) -> Path:
    """A file of ONNX with something else in it."""
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    return file


def _outside(model: Any) -> None:
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [1, 12, 2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    tensor.ClearField("raw_data")


def _huge(model: Any) -> None:
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [1, 12, 2])
    tensor.dims[0] = 2**40


def _clipped(model: Any) -> None:
    node = next(n for n in model.graph.node if n.op_type == "LSTM")
    node.attribute.append(onnx.helper.make_attribute("clip", 1.0))


def _no_direction(model: Any) -> None:
    node = next(n for n in model.graph.node if n.op_type == "LSTM")
    next(a for a in node.attribute if a.name == "direction").s = b"\xb6"


def _computed(model: Any) -> None:
    node = next(n for n in model.graph.node if n.op_type == "LSTM")
    node.input[1] = "x"


def _made_by(nodes: list[Any]) -> Any:
    """A change: W is what nodes make, of which the last makes "w"."""

    def change(model: Any) -> None:
        node = next(n for n in model.graph.node if n.op_type == "LSTM")
        made = [onnx.helper.make_node(op, [v or node.input[1] for v in read], [to], **more)
                for op, read, to, more in nodes]  # fmt: skip
        node.input[1] = "w"
        whole = [*made, *model.graph.node]
        model.graph.ClearField("node")
        model.graph.node.extend(whole)

    return change


CYCLE = [("Identity", ["v"], "w", {}), ("Identity", ["w"], "v", {})]
ITSELF = [("Concat", ["w", "w"], "w", {"axis": 0})]
DOUBLED = [("Concat", [f"v{k}" * (k > 0)] * 2, f"v{k + 1}" if k < 59 else "w", {"axis": 0})
           for k in range(60)]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_made_by(CYCLE), "must have its W as a constant of the file, got 'w', which is computed"),
        (_made_by(ITSELF), "must have its W as a constant of the file, got 'w', which is computed"),
        (_made_by(DOUBLED), "has a W that is made in more than 32 steps"),
        (_outside, "keeps W in another file, which is not opened; write the model again with all"),
        (_huge, "says W is .*, more than the file holds"),
        (_clipped, "has clip=1.0, which no cell has"),
        (_no_direction, "has direction '.', which there is not"),
        (_computed, "must have its W as a constant of the file, got 'x', which is computed"),
        (lambda model: model.graph.ClearField("node"), "must hold an RNN, GRU or LSTM of ONNX"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_taken(change: Any, said: str, tmp_path: Path) -> None:
    file = changed(to_onnx(LSTM(2, 3), tmp_path / "net.onnx"), change)
    with pytest.raises(DataError, match=said):
        from_onnx(file)


def test_what_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="must be a file of ONNX, and it is not"):
        from_onnx(tmp_path / "net.onnx")


def test_models_that_are_not_written(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    with pytest.raises(OptionError, match="opset must be a whole number of at least 18, got 9"):
        to_onnx(LSTM(1, 2), file, opset=9)
    with pytest.raises(OptionError, match="a dilated layer has no form in ONNX here"):
        to_onnx(Recurrent(cells.GRU(), 1, 2, dilation=2), file)
    own = Recurrent(cells.GRU(), 1, 2, bidirectional=True, merge=torch.maximum)
    with pytest.raises(OptionError, match="a merge of your own has no form in ONNX"):
        to_onnx(nn.Sequential(own, Gate(2), Readout(2, 1)), file)
    assert not file.exists()


def test_lines_that_an_embedding_shortens_are_short_in_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=0.5), nn.Linear(3, 2))
    before = model[0].weight.detach().clone()
    run = session(to_onnx(model, tmp_path / "net.onnx"))
    assert torch.equal(model[0].weight, before)
    x = torch.arange(6).view(6, 1)
    y = torch.from_numpy(run.run(None, {"x": x.numpy()})[0])
    torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (nn.Softmax(1), "it mixes steps or rows of a batch, or changes their shape; dimensions"),
        (nn.LayerNorm((2, 4)), r"1 must normalise the units of a step alone, got LayerNorm\(\(2"),
        (LSTM(4, 4, batch_first=True), "all layers of a model to export must have the same batch_"),
    ],
)
def test_parts_that_mix_steps_are_refused(part: nn.Module, text: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=text):
        to_onnx(nn.Sequential(LSTM(3, 4), part), tmp_path / "net.onnx")


def test_a_start_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    layer = Recurrent(cells.LSTM(), 3, 4, learn_initial=True)
    assert from_onnx(to_onnx(layer, tmp_path / "zero.onnx"))
    with torch.no_grad():
        layer.initial_c_l0.fill_(0.5)
    file = to_onnx(layer, tmp_path / "half.onnx")
    with pytest.raises(DataError, match="starts from a constant initial_c that is not zero, which"):
        from_onnx(file)


def test_operators_inside_branches_are_found(tmp_path: Path) -> None:
    """As published models have them: the branches of an If, each with constants of its own."""
    helper = onnx.helper
    inner = onnx.load(to_onnx(LSTM(2, 3), tmp_path / "net.onnx")).graph
    branch = helper.make_graph(inner.node, "b", [], inner.output, inner.initializer)
    other = helper.make_graph(inner.node, "c", [], inner.output, inner.initializer)
    node = helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=other)
    which = helper.make_tensor_value_info("which", 9, [])
    graph = helper.make_graph([node], "g", [which, *inner.input], inner.output)
    (tmp_path / "if.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    found = from_onnx(tmp_path / "if.onnx")
    assert list(found) == ["LSTM_node", "LSTM_node_2"]


def test_the_command_reads_layers_that_export_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from throughtime.cli import main

    layer = Recurrent(cells.GRUResetBefore(), 3, 5)
    file = to_onnx(layer, tmp_path / "net.onnx")
    assert main(["import", str(file), "--out", str(tmp_path / "in")]) == 0
    place, said = capsys.readouterr().out.strip().split("\t")
    assert place == f"{tmp_path / 'in' / 'layers.py'}:gru_node"
    assert said == "Recurrent(GRUResetBefore(), 3, 5)"
    assert main(["export", place, "--to", "onnx", "--out", str(tmp_path / "out")]) == 0
    (again,) = from_onnx(tmp_path / "out" / "net.onnx").values()
    for name, value in layer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def _in_pieces(model: Any, times: int = 1) -> None:
    """W cut in two, joined again and put into a dimension, as exporters of frameworks write it."""
    graph, helper = model.graph, onnx.helper
    node = next(n for n in graph.node if n.op_type == "LSTM")
    whole = next(t for t in graph.initializer if t.name == node.input[1])
    W = onnx.numpy_helper.to_array(whole)[0]
    graph.initializer.remove(whole)
    numbers = {"w": W, "zero": [0], "five": [5], "end": [12]}
    for name, v in numbers.items():
        array = np.asarray(v, np.float32 if name == "w" else np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    made = [
        helper.make_node("Slice", ["w", "zero", "five", "zero"], ["first"]),
        helper.make_node("Slice", ["w", "five", "end", "zero"], ["rest"]),
        helper.make_node("Concat", ["first", "rest"], ["joined"], axis=0),
        *(
            helper.make_node("Concat", [f"j{k}"] * 2, [f"j{k + 1}"], axis=0)
            for k in range(1, times)
        ),
        helper.make_node("Unsqueeze", [f"j{times}" if times > 1 else "joined", "zero"], ["W"]),
    ]
    if times > 1:
        made.insert(3, helper.make_node("Identity", ["joined"], ["j1"]))
    node.input[1] = "W"
    nodes = [*made, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)


def test_weights_that_are_cut_and_joined_are_put_together(tmp_path: Path) -> None:
    layer = LSTM(2, 3)
    (again,) = from_onnx(changed(to_onnx(layer, tmp_path / "net.onnx"), _in_pieces)).values()
    assert torch.equal(again.weight_ih_l0, layer.weight_ih_l0)


def test_weights_that_grow_by_being_joined_are_refused(tmp_path: Path) -> None:
    file = changed(to_onnx(LSTM(2, 3), tmp_path / "net.onnx"), lambda m: _in_pieces(m, 25))
    with pytest.raises(DataError, match="says W is .*, more than the file holds"):
        from_onnx(file)
