"""What a diagnosis is not made for gets a clear sentence, from the call itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import throughtime
from throughtime import LSTM, Recurrent, cells, diagnose
from throughtime.diagnosis import (
    Batch,
    capacity,
    connectivity,
    gates,
    jacobians,
    weight_lags,
)
from throughtime.errors import OptionError, ShapeError

X = torch.rand(12, 4, 3, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A module around a recurrent one."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)[0]
        return y


class Loop(nn.Module):
    """Equations written out in a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(11, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[1], 8)
        for v in x:
            h = self.cell(torch.cat((v, h), -1)).tanh()
        return h


class Twice(nn.Module):
    """A layer that reads its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.layer(x)[0])[0]
        return y


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Linear(3, 3), "the model has no recurrent layer of torch.nn or throughtime"),
        (Loop, "equations written out in a loop of your own .* make them a Cell for throughtime"),
        (lambda: nn.LSTM(3, 8).requires_grad_(False), "every weight .* is frozen; unfreeze them"),
        (lambda: nn.LSTM(3, 8).half(), "is in .*float16.*, .* call model.float"),
        (lambda: nn.LSTM(3, 8).bfloat16(), "is in .*bfloat16.*, .* call model.float"),
        (lambda: torch.compile(Net(nn.GRU(3, 8))), "the model is compiled by torch.compile; give"),
        (lambda: Net(torch.compile(nn.GRU(3, 8))), "module inner is compiled by torch.compile"),
        (lambda: nn.DataParallel(nn.LSTM(3, 8)), "the model is wrapped in DataParallel; give"),
        (lambda: Recurrent(cells.GRU(), 3, 8, dilation=2), "the layer is dilated"),
        (Twice, "layer layer runs twice on a batch; it must run once"),
    ],
)
def test_a_model_that_cannot_be_looked_at_is_refused(model: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        throughtime.diagnose(model(), X)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_a_model_wrapped_in_ddp_is_refused(process_group: None) -> None:
    model = nn.parallel.DistributedDataParallel(nn.GRU(3, 8))
    with pytest.raises(OptionError, match=r"wrapped in DistributedDataParallel; .* its \.module"):
        throughtime.diagnose(model, X)
    assert throughtime.diagnose(model.module, X).steps == 12


def test_a_model_compiled_in_place_is_looked_at_as_it_was_written() -> None:
    torch.manual_seed(0)
    model = Net(nn.GRU(3, 8))
    plain = throughtime.diagnose(model, X)
    model.compile()
    assert throughtime.diagnose(model, X) == plain


@pytest.mark.parametrize(
    ("x", "loss", "error", "words"),
    [
        (X[:1], None, ShapeError, "a lag needs sequences of at least 2 steps, got 1"),
        (X[:0], None, ShapeError, r"needs steps and rows, got x of \(0, 4, 3\)"),
        (X[:, :0], None, ShapeError, r"needs steps and rows, got x of \(12, 0, 3\)"),
        ([], None, ShapeError, "a diagnosis needs at least one batch, got none"),
        ([{"z": X}], None, OptionError, "none of the keys z names, so it was given the dict its"),
        (X.numpy(), None, OptionError, r"a batch must be a tensor or a tuple .* got ndarray"),
        (3, None, OptionError, "batches must be a tensor, a tuple .* got int"),
        (X, lambda y: y.detach().sum(), OptionError, "the loss depends on nothing that trains"),
        (X, lambda y: y[0].sum(), OptionError, "the loss sends no gradient to the last step"),
        (X, lambda y: y, OptionError, r"one number, got \(12, 4, 8\); take its mean$"),
    ],
)
def test_bad_input_is_refused(x: Any, loss: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        throughtime.diagnose(Net(nn.GRU(3, 8)), x, loss)


def test_a_model_in_half_precision_is_told_its_dtype() -> None:
    said = r"^layer inner is in torch\.bfloat16, in which gradients vanish early; call model\.float"
    with pytest.raises(OptionError, match=said):
        throughtime.diagnose(Net(nn.GRU(3, 8)).bfloat16(), X.bfloat16())


@pytest.mark.parametrize("layer", [nn.GRU(3, 8), nn.Sequential(throughtime.GRU(3, 8))])
def test_quantities_of_a_layer_take_ours_alone(layer: Any) -> None:
    said = r"^layer must be a recurrent layer of throughtime, got a torch\.nn.*from_torch$"
    for measure in (
        lambda: gates.gate_times(layer, Batch(X)),
        lambda: capacity.memory_capacity(layer),
        lambda: jacobians.jacobians(layer, Batch(X)),
        lambda: connectivity.connectivity(layer, Batch(X)),
    ):
        with pytest.raises(TypeError, match=said):
            measure()


def test_a_loss_that_is_nan_from_the_start_is_told() -> None:
    report = throughtime.diagnose(Net(nn.GRU(3, 8)), X, lambda y: y.sum() * float("nan"))
    assert "The loss must be finite from the start, got nan of a finite output." in str(report)
    assert report.loss is None and report.lag_gradients == ()


def test_several_layers_of_which_one_is_frozen_are_measured() -> None:
    model = nn.ModuleDict({"a": nn.GRU(3, 8), "b": nn.GRU(8, 8)})
    model["a"].requires_grad_(False)

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.parts["b"](self.parts["a"](x)[0])[0]
            return y

    report = throughtime.diagnose(Stack(), X)
    assert [m.name for m in report.modules] == ["parts.a", "parts.b"]
    assert [w.name for w in report.weight_lags] == ["parts.b"]
    assert [(m.name, m.reason) for m in report.missing if m.quantity == "weight_lags"] == [
        ("parts.a", "no weight of the layer trains, or the loss depends on none; unfreeze it")
    ]


def test_a_caller_without_gradients_changes_no_number() -> None:
    torch.manual_seed(0)
    layer, x = LSTM(2, 3), torch.randn(12, 4, 2)
    report = diagnose(layer, x)
    with torch.no_grad():
        assert diagnose(layer, x) == report


def test_weights_before_that_are_no_tensors_are_a_sentence() -> None:
    layer = LSTM(2, 3)
    before = {name: None for name, _ in layer.named_parameters()}
    report = diagnose(layer, torch.randn(12, 4, 2), before=before)  # type: ignore[arg-type]
    (missing,) = (m for m in report.missing if m.quantity == "evenness")
    assert missing.reason == "before must hold tensors, got NoneType as weight_ih_l0"


@pytest.mark.parametrize("rows", [0, -1, True, 1.5])
def test_rows_that_are_no_number_of_rows(rows: Any) -> None:
    layer, x = LSTM(2, 3), torch.randn(12, 4, 2)
    for measure in (
        lambda: connectivity.connectivity(layer, Batch(x), rows=rows),
        lambda: jacobians.jacobians(layer, Batch(x), rows=rows),
        lambda: weight_lags.weight_lags(layer, lambda: layer(x)[0].sum(), rows),
    ):
        with pytest.raises(OptionError, match="rows must be a positive integer, got"):
            measure()


def test_another_default_device_changes_no_number() -> None:
    """A program that begins with `torch.set_default_device`, and a model on the processor."""
    torch.manual_seed(0)

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 8, bidirectional=True), nn.Linear(16, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            h = self.rnn(packed)[1][0]
            y: Tensor = self.head(torch.cat((h[0], h[1]), -1))
            return y

    model, batches = Packed(), [((X, torch.tensor([12, 5, 11, 12])),)] * 2
    long = X.repeat(5, 1, 1)
    expected = throughtime.diagnose(model, batches, lambda y: y.sin().mean(), clip=1.0)
    with torch.device("meta"):
        report = throughtime.diagnose(model, batches, lambda y: y.sin().mean(), clip=1.0)
        whole = throughtime.diagnose(Net(model.rnn), long)
    assert report == expected
    assert whole == throughtime.diagnose(Net(model.rnn), long) and whole.troubles
