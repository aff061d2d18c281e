"""torch.onnx.export of whole models: our operator becomes the nodes that `to_onnx` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.export.built import TABLE
from throughtime import GRU, LSTM, Cell, Recurrent, cells
from throughtime.errors import TransformError

onnx = pytest.importorskip("onnx", reason="no onnx here; pip install 'throughtime[export]'")
pytest.importorskip("onnxscript", reason="no onnxscript here; pip install onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore")
"""torch's exporter warns of its own parts."""

SIZES = ((9, 3), (1, 1), (2, 5))


class Whole(nn.Module):
    """A model whose code is its own; behind x come lengths, or the direct inputs of its cell."""

    def __init__(self, layer: Any, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 2)

    def forward(self, x: Tensor, one: Tensor | None = None, two: Tensor | None = None) -> Any:
        names = getattr(self.layer, "cell", cells.LSTM()).layout.inputs
        given = [v for v in (one, two) if v is not None]
        options: dict[str, Any] = {}
        if names:
            options["inputs"] = dict(zip(names, given, strict=True))
        elif given:
            options["lengths"] = one
        y, state = self.layer(x, **options)
        return self.head(torch.tanh(y) * 2), state


def kinds(file: Path) -> list[str]:
    graph = onnx.load(file).graph
    return [n.op_type for n in graph.node if n.op_type in ("LSTM", "GRU", "RNN", "Scan")]


def written(model: nn.Module, file: Path, *args: Tensor) -> Path:
    """By torch's exporter, with any number of steps and rows; T before B."""
    shapes = tuple({0: "T", 1: "B"} if v.dim() > 1 else {0: "B"} for v in args)
    torch.onnx.export(
        model.eval(), args, str(file), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    return file


def check(model: nn.Module, file: Path, *args: Tensor) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime; pip install onnxruntime")
    session = runtime.InferenceSession(str(file))
    names = [i.name for i in session.get_inputs()]
    found = session.run(None, dict(zip(names, [v.numpy() for v in args], strict=True)))
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(model(*args))
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b.numpy()).max() <= 1e-5 * max(1.0, float(b.abs().max()))


def check_cell(cell: Cell, folder: Path) -> None:
    layer = Recurrent(cell, 3, 7, bidirectional=True)
    with torch.no_grad():
        for value in layer.parameters():
            value.normal_(0, 0.2)
    model, direct = Whole(layer, layer.output_size), cell.layout.inputs
    widths = [cell.width(cell.inputs[n], 7) for n in direct]
    file = written(model, folder / "net.onnx", *(torch.rand(4, 2, w) for w in (3, *widths)))
    for T, B in SIZES:
        check(model, file, *(torch.rand(T, B, w) for w in (3, *widths)))


FEW = [cells.LEM(), cells.GRUD(), cells.LSTMLayerNorm()]


@pytest.mark.parametrize("cell", FEW, ids=repr)
def test_cells_inside_a_model_of_own_code(cell: Cell, tmp_path: Path) -> None:
    check_cell(cell, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("cell", TABLE, ids=repr)
def test_every_cell_inside_a_model_of_own_code(cell: Cell, tmp_path: Path) -> None:
    check_cell(cell, tmp_path)


OPERATORS = {
    "LSTM": lambda: LSTM(3, 7, 2, bidirectional=True), "GRU": lambda: GRU(3, 7),
    "RNN": lambda: Recurrent(cells.Elman("relu"), 3, 7),
    "LSTM with peepholes": lambda: Recurrent(cells.LSTMPeephole(), 3, 7, bidirectional=True),
    "GRU before": lambda: Recurrent(cells.GRUResetBefore(), 3, 7, bias=False),
    "Scan": lambda: Recurrent(cells.SLSTM(), 3, 7, bidirectional=True),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_lengths_and_the_operators_that_cells_are(name: str, tmp_path: Path) -> None:
    layer: Any = OPERATORS[name]()
    model = Whole(layer, 7 * layer.directions)
    file = written(model, tmp_path / "n", torch.randn(4, 2, 3), torch.tensor([4, 2]))
    assert set(kinds(file)) == {name.split()[0]}
    for T, B in SIZES:
        check(model, file, torch.randn(T, B, 3), torch.randint(0, T + 1, (B,)))


def test_a_program_that_torch_exported_before(tmp_path: Path) -> None:
    model, x = Whole(Recurrent(cells.LEM(), 3, 7), 7).eval(), torch.randn(4, 2, 3)
    program = torch.export.export(model, (x,))
    torch.onnx.export(program, (), str(tmp_path / "n"), dynamo=True, verbose=False)
    assert kinds(tmp_path / "n") == ["Scan"]
    check(model, tmp_path / "n", torch.randn(4, 2, 3))


def test_zoneout_and_a_start_that_was_learned(tmp_path: Path) -> None:
    layer = Recurrent(cells.GRU(), 3, 7, zoneout=0.3, learn_initial=True, num_layers=2)
    with torch.no_grad():
        for value in layer.parameters():
            value.normal_(0, 0.3)
    model = Whole(layer, 7)
    written(model, tmp_path / "n", torch.randn(4, 2, 3))
    check(model, tmp_path / "n", torch.randn(6, 3, 3))


class Restarted(nn.Module):
    """Says where sequences begin anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LSTM(3, 7)

    def forward(self, x: Tensor, reset: Tensor) -> Any:
        return self.layer(x, reset=reset)[0]


WAY_OUT = (
    "has no form for a recurrent layer with {}; call the layer with a padded batch and lengths"
)


def test_resets_have_no_form(tmp_path: Path) -> None:
    args = torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)
    with pytest.raises(Exception) as found:
        torch.onnx.export(Restarted().eval(), args, str(tmp_path / "n"), dynamo=True, verbose=False)
    words = f"{found.value} {found.value.__cause__}"
    assert WAY_OUT.format("resets") in words


def test_packed_rows_have_no_form() -> None:
    from throughtime.export.onnx import decompose
    from throughtime.scan.operator import flatten

    call = LSTM(3, 7)._example(0, 2, 2)
    call = call._replace(x=call.x.flatten(0, 1), batch_sizes=torch.tensor([2, 2]))
    form, tensors = flatten(call)
    with pytest.raises(TransformError, match=WAY_OUT.format("a PackedSequence")):
        decompose(call.cell.key, "auto", form, False, tensors)
